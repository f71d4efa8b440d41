/** The panel as HTML: it shows a model and calls handlers; it knows neither server nor viewer. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const { button, h, icon, section } = sliceprop; // of elements.js, which comes before this file

  class View {
    /** @param {object} handlers what the buttons do */
    constructor(handlers) {
      this._do = handlers;
      this._parts = new Map();
      this._width = Number(window.localStorage?.getItem('labelprop-width')) || 304;
      this.root = h('div', { class: 'labelprop-content', style: 'display: contents' });
      this._notices = h('div');
      this._busy = h('div', { class: 'labelprop-busy', role: 'progressbar', 'aria-hidden': 'true' });
      this._scroll = h('div', { class: 'labelprop-scroll' });
      this.root.append(this._handle(), this._busy, this._scroll, this._notices);
      this._resize(this._width);
      document.getElementById('labelprop-style') ||
        document.head.append(Object.assign(h('style', { id: 'labelprop-style' }), { textContent: sliceprop.STYLE }));
    }

    _handle() {
      const drag = event => this._resize(this._width + this._from - event.clientX);
      const handle = h('div', { class: 'labelprop-resize', title: 'Drag to change the width of the panel' });
      handle.addEventListener('pointerdown', event => {
        this._from = event.clientX;
        handle.setPointerCapture(event.pointerId);
        handle.addEventListener('pointermove', drag);
        event.preventDefault();
      });
      handle.addEventListener('pointerup', event => {
        handle.removeEventListener('pointermove', drag);
        this._width = this._resize(this._width + this._from - event.clientX);
        window.localStorage?.setItem('labelprop-width', this._width);
      });
      return handle;
    }

    _resize(width) {
      const fitting = Math.round(Math.min(640, Math.max(272, width)));
      document.documentElement.style.setProperty('--labelprop-width', `${fitting}px`);
      return fitting;
    }

    /** Show a model; only what differs from the one before is built anew, so that a text being typed stays. */
    show(model) {
      this._busy.classList.toggle('on', Boolean(model.busy));
      this._busy.setAttribute('aria-label', model.busy || '');
      this._part(this._notices, 'notices', model.notices, notices => notices.map(notice => this._notice(notice)));
      const parts = model.ready ? this._sections(model) : [['empty', model.message, () => this._empty(model)]];
      if (this._shown !== model.ready) {
        this._shown = model.ready;
        this._parts.clear();
        this._scroll.replaceChildren(...parts.map(([name]) => h('div', { 'data-part': name })));
      }
      for (const [name, data, build] of parts) {
        this._part(this._scroll.querySelector(`[data-part=${name}]`), name, data, build);
      }
    }

    _part(node, name, data, build) {
      const key = JSON.stringify(data);
      const typing = node.querySelector('input[type=text]:focus');
      if (this._parts.get(name) === key || typing?.value) {
        return; // the same, or somebody is typing a name in it
      }
      this._parts.set(name, key);
      node.replaceChildren(...[build(data)].flat());
      if (typing) {
        node.querySelector('input[type=text]')?.focus();
      }
    }

    _sections(model) {
      const { labels, paint, slice, propagation, suggestion, slices, final } = model;
      return [
        ['labels', labels, () => this._labels(labels)],
        ['paint', paint, () => this._paint(paint)],
        ['slice', slice, () => this._slice(slice)],
        ['propagation', propagation, () => this._propagation(propagation)],
        ['suggestion', suggestion, () => this._suggestion(suggestion)],
        ['slices', slices, () => this._slices(slices)],
        ['final', final, () => this._final(final)],
      ];
    }

    _empty({ message }) {
      const { text, action } = message;
      const run = action && button({ class: 'primary', onclick: () => this._do[action.run]() }, action.label);
      return h('section', {}, h('div', { class: 'labelprop-body' }, h('div', { class: 'labelprop-hint' }, text), run));
    }

    _notice({ id, kind, text, action }) {
      const close = button(
        { class: 'plain', title: 'Close this message', 'aria-label': 'Close', onclick: () => this._do.dismiss(id) },
        '×',
      );
      const run = action && button({ class: 'plain', onclick: () => this._do.act(id) }, action);
      const role = kind === 'error' ? 'alert' : 'status';
      return h(
        'div',
        { class: `labelprop-notice ${kind}`, role, 'data-kind': kind },
        h('div', { class: 'text' }, text),
        run,
        close,
      );
    }

    _labels({ entries, fixed, shown, busy }) {
      const rows = entries.map(entry => this._label(entry, fixed));
      const hint = h(
        'div',
        { class: 'labelprop-hint' },
        'Add a label for each structure, then paint it on a few slices.',
      );
      const input = h('input', {
        type: 'text',
        placeholder: 'New label',
        'aria-label': 'Name of the new label',
        maxlength: 60,
        disabled: busy,
      });
      const add = event => {
        event.preventDefault();
        this._do.addLabel(input.value).then(added => added && (input.value = ''));
      };
      const form = h(
        'form',
        { class: 'labelprop-row', onsubmit: add },
        input,
        button(
          { type: 'submit', class: 'icon', title: 'Add this label', 'aria-label': 'Add label', disabled: busy },
          icon('plus'),
        ),
      );
      const body = h(
        'div',
        { class: 'labelprop-body' },
        rows.length ? h('div', { class: 'labelprop-labels' }, rows) : hint,
        !fixed && form,
      );
      const rated = entries.some(({ quality }) => quality !== null);
      const quality =
        rated &&
        h(
          'span',
          { title: 'Dice that the result is expected to have, from the annotated slices: 1 is perfect' },
          'estimated quality',
        );
      const eye = button(
        {
          class: 'plain',
          'data-action': 'show',
          'aria-pressed': String(!shown),
          'aria-label': 'Hide labels',
          title: shown ? 'Hide the labels, to look at the scan below (H)' : 'Show the labels (H)',
          onclick: () => this._do.toggleLabels(),
        },
        icon('eye'),
      );
      return section('Labels', 'labels', body, [quality, eye]);
    }

    _label({ segment, name, color, active, quality, here, key }, fixed) {
      const swatch = h('input', {
        type: 'color',
        value: color,
        title: `Change the colour of ${name}`,
        'aria-label': `Colour of ${name}`,
      });
      swatch.addEventListener('click', event => event.stopPropagation());
      swatch.addEventListener('change', () => this._do.recolour(segment, swatch.value));
      const text = h('span', { class: 'name' }, name);
      const rename = button(
        {
          class: 'plain icon',
          title: `Rename ${name}`,
          'aria-label': `Rename ${name}`,
          onclick: event => (event.stopPropagation(), this._rename(row, segment, name)),
        },
        icon('pencil'),
      );
      const title = `Paint ${name}${key ? ` (key ${key})` : ''}`;
      const row = h(
        'div',
        {
          class: `labelprop-label${active ? ' active' : ''}`,
          title,
          role: 'button',
          tabindex: 0,
          'data-label': name,
          'aria-pressed': String(active),
        },
        swatch,
        text,
        !fixed && rename,
        quality !== null && this._quality(name, quality, here),
      );
      row.addEventListener('click', () => this._do.chooseLabel(segment));
      row.addEventListener('dblclick', () => !fixed && this._rename(row, segment, name));
      return row;
    }

    _quality(name, quality, here) {
      const onSlice = here === null ? '' : `; on this slice ${sliceprop.dice(here)}`;
      const title = `Expected Dice of ${name}: ${sliceprop.dice(quality)}${onSlice}`;
      const bar = h('i', { style: `width: ${Math.round(100 * quality)}%` });
      const number = h('span', { class: 'labelprop-number' }, sliceprop.dice(quality));
      return h('span', { class: 'labelprop-quality', title }, h('span', { class: 'labelprop-meter' }, bar), number);
    }

    _rename(row, segment, name) {
      const input = h('input', { type: 'text', value: name, 'aria-label': `New name of ${name}`, maxlength: 60 });
      let done = false;
      const finish = keep => {
        if (!done) {
          done = true;
          input.replaceWith(h('span', { class: 'name' }, name));
          if (keep && input.value.trim() !== name) {
            this._do.renameLabel(segment, input.value);
          }
        }
      };
      input.addEventListener('keydown', event => {
        if (event.key === 'Enter' || event.key === 'Escape') {
          finish(event.key === 'Enter');
        }
      });
      input.addEventListener('click', event => event.stopPropagation());
      input.addEventListener('blur', () => finish(true));
      row.querySelector('.name').replaceWith(input);
      input.focus();
      input.select();
    }

    _paint({ tool, radius, marking, strokes, enabled }) {
      const choice = (name, label, key, title) =>
        button(
          {
            title: `${title} (${key})`,
            'data-tool': name,
            'aria-pressed': String(tool === name),
            disabled: name !== 'look' && !enabled,
            onclick: () => this._do.useTool(name),
          },
          icon(name),
          label,
        );
      const tools = h(
        'div',
        { class: 'labelprop-tools' },
        choice('look', 'Look', 'N', 'Look around: window and level with the left mouse button'),
        choice('brush', 'Brush', 'B', 'Paint the chosen label on whole slices'),
        choice('eraser', 'Eraser', 'E', 'Take paint away'),
        choice('scribble', 'Scribble', 'S', 'Correct the result between slices, in any view, with short marks'),
      );
      const slider = h('input', {
        type: 'range',
        min: 0.5,
        max: 40,
        step: 0.5,
        value: radius,
        'aria-label': 'Radius in mm',
      });
      slider.addEventListener('input', () => {
        number.textContent = `${slider.value} mm`;
        this._do.setRadius(Number(slider.value));
      });
      slider.addEventListener('change', () => slider.blur());
      const number = h('span', { class: 'labelprop-number', style: 'width: 52px; text-align: right' }, `${radius} mm`);
      const size = h(
        'label',
        { class: 'labelprop-row', title: 'Radius of brush and eraser ([ and ])' },
        'Radius',
        slider,
        number,
      );
      const mark = (value, label, title) =>
        button(
          {
            class: 'grow',
            title,
            'data-mark': value,
            'aria-pressed': String(marking === value),
            onclick: () => this._do.mark(value),
          },
          label,
        );
      const marks =
        tool === 'scribble' &&
        h(
          'div',
          { class: 'labelprop-row' },
          mark('label', 'This label', 'Mark what belongs to the chosen label (S)'),
          mark('background', 'Background', 'Mark what belongs to no label (X)'),
          mark('erase', 'Erase', 'Take marks away'),
        );
      const undo = button(
        {
          class: 'plain',
          title: 'Take back the last stroke (Ctrl+Z)',
          disabled: !strokes,
          'aria-label': 'Undo stroke',
          onclick: () => this._do.undoStroke(),
        },
        icon('undo'),
      );
      return section('Paint', 'paint', h('div', { class: 'labelprop-body' }, tools, marks, size), undo);
    }

    _slice({ number, total, complete, unfinished, unsaved, scribbles, busy }) {
      const where = number
        ? `Slice ${number} of ${total}${unfinished ? ', not finished' : ''}`
        : 'No view shows the slices';
      const toggle = button(
        {
          class: 'grow',
          'data-action': 'complete',
          'aria-pressed': String(complete),
          disabled: !number,
          title: complete
            ? 'This slice is complete: what is not painted on it counts as background. Press to take that back (D)'
            : 'This slice is complete: what is not painted on it counts as background (D)',
          onclick: () => this._do.toggleComplete(),
        },
        icon('check'),
        'Complete',
      );
      const count = unsaved + (scribbles ? 1 : 0);
      const what = [unsaved && `${unsaved} ${unsaved === 1 ? 'slice' : 'slices'}`, scribbles && 'scribbles'].filter(
        Boolean,
      );
      const submit = button(
        {
          class: count ? 'primary grow' : 'grow',
          'data-action': 'submit',
          disabled: busy || !count,
          title: 'Send what was painted to the server (Ctrl+Enter)',
          onclick: () => this._do.submit(),
        },
        count ? `Submit ${what.join(' and ')}` : 'All submitted',
      );
      const step = (delta, name, title) =>
        button({ class: 'plain icon', title, 'aria-label': title, onclick: () => this._do.step(delta) }, icon(name));
      const row = h(
        'div',
        { class: 'labelprop-row' },
        h('span', { class: 'grow labelprop-number', 'data-slice': number || '' }, where),
        step(-1, 'left', 'Slice before (arrow up)'),
        step(1, 'right', 'Next slice (arrow down)'),
      );
      const body = h('div', { class: 'labelprop-body' }, row, h('div', { class: 'labelprop-row' }, toggle, submit));
      return section('This slice', 'slice', body);
    }

    _propagation({ busy, training, model, trainable, result, uncertainty, undo }) {
      const train = button(
        {
          class: 'grow',
          'data-action': 'train',
          disabled: busy || Boolean(training) || !trainable,
          title: 'Learn how the slices of this scan deform into each other (T)',
          onclick: () => this._do.train(),
        },
        model ? 'Train again' : 'Train',
      );
      const propagate = button(
        {
          class: 'primary grow',
          'data-action': 'propagate',
          disabled: busy || !trainable,
          title: 'Carry the annotated slices through the volume (P)',
          onclick: () => this._do.propagate(),
        },
        result ? 'Propagate again' : 'Propagate',
      );
      const progress =
        training &&
        h(
          'div',
          { class: 'labelprop-card', 'data-training': training.status },
          h('div', { class: 'labelprop-meter' }, h('i', { style: `width: ${Math.round(100 * training.share)}%` })),
          h(
            'div',
            { class: 'labelprop-row' },
            h('span', { class: 'grow labelprop-hint labelprop-number' }, training.text),
            training.own &&
              button(
                {
                  class: 'plain',
                  'data-action': 'cancel',
                  title: 'Stop training; the best model so far is kept',
                  onclick: () => this._do.cancelTraining(),
                },
                'Cancel',
              ),
          ),
        );
      const shade = button(
        {
          class: 'grow',
          'data-action': 'uncertainty',
          'aria-pressed': String(uncertainty.on),
          disabled: !uncertainty.available,
          title: 'Shade where the result is uncertain, yellow to red (U)',
          onclick: () => this._do.toggleUncertainty(),
        },
        'Uncertainty',
      );
      const back = button(
        {
          class: 'grow',
          'data-action': 'undo',
          disabled: busy || !undo,
          title: 'Bring back the result before the last propagation; your slices stay',
          onclick: () => this._do.undoPropagation(),
        },
        'Undo propagation',
      );
      const hint =
        !model &&
        !training &&
        h('div', { class: 'labelprop-hint' }, 'Propagation works at once, and better after training.');
      const row = (...children) => h('div', { class: 'labelprop-row' }, children);
      return section(
        'Whole volume',
        'propagation',
        h('div', { class: 'labelprop-body' }, row(train, propagate), progress, hint, row(shade, back)),
      );
    }

    _suggestion(suggestion) {
      const ask = button(
        {
          class: 'grow',
          'data-action': 'suggest',
          title: 'Ask which slice to annotate next (G)',
          onclick: () => this._do.goToSuggestion(),
        },
        'Which slice next?',
      );
      if (!suggestion) {
        return section(
          'Next slice',
          'suggestion',
          h('div', { class: 'labelprop-body' }, h('div', { class: 'labelprop-row' }, ask)),
        );
      }
      const { number, reason, gain, before, after, stop } = suggestion;
      const sign =
        stop && h('div', { class: 'labelprop-stop', 'data-stop': '' }, icon('check'), 'Good enough: you can stop here');
      const go =
        number &&
        button(
          {
            class: stop ? 'grow' : 'primary grow',
            'data-action': 'suggest',
            title: `${reason} (G)`,
            onclick: () => this._do.goToSuggestion(),
          },
          `Go to slice ${number}`,
          icon('right'),
        );
      const expected =
        gain !== null &&
        h(
          'div',
          { class: 'labelprop-row labelprop-number' },
          h('span', { class: 'grow' }, 'Expected gain'),
          h(
            'span',
            { title: 'Mean Dice expected now, and with this slice annotated' },
            `${sliceprop.gain(gain)}  (${sliceprop.dice(before)} → ${sliceprop.dice(after)})`,
          ),
        );
      const body = h(
        'div',
        { class: 'labelprop-body' },
        sign,
        go && h('div', { class: 'labelprop-row' }, go),
        h('div', { class: 'labelprop-hint', 'data-reason': '' }, reason),
        expected,
      );
      return section('Next slice', 'suggestion', body);
    }

    _slices(slices) {
      const chips = slices.map(({ index, number, current, unfinished, unsaved }) => {
        const state = unfinished ? 'painted, not finished' : unsaved ? 'not submitted yet' : 'annotated';
        const classes = [current && 'current', unfinished && 'unfinished', unsaved && 'unsaved']
          .filter(Boolean)
          .join(' ');
        return button(
          {
            class: classes,
            title: `Go to slice ${number}: ${state}`,
            'data-slice-index': index,
            onclick: () => this._do.goTo(index),
          },
          String(number),
        );
      });
      const body = chips.length
        ? h('div', { class: 'labelprop-slices' }, chips)
        : h('div', { class: 'labelprop-hint' }, 'None yet. Slices that you paint are listed here.');
      return section(
        'Annotated slices',
        'slices',
        h('div', { class: 'labelprop-body' }, body),
        h('span', { class: 'labelprop-number' }, String(slices.length || '')),
      );
    }

    _final({ busy, possible, seg }) {
      const title = seg ? 'Store the result in the archive as DICOM SEG' : 'Store the result as the final label';
      const save = button(
        {
          class: 'grow',
          'data-action': 'final',
          disabled: busy || !possible,
          title,
          onclick: () => this._do.saveFinal(),
        },
        icon('save'),
        'Save as final',
      );
      return section(
        'Finish',
        'final',
        h('div', { class: 'labelprop-body' }, h('div', { class: 'labelprop-row' }, save)),
      );
    }
  }

  Object.assign(sliceprop, { View });
})();
