/** One series being annotated: its voxels in the viewer, its slices, and what the server knows of it. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  /** Background scribbles: in the viewer, whose brush keeps 255 to itself, and on the server. */
  const BACKGROUND = 254;
  const SERVER_BACKGROUND = 255;
  const MARKS = '#d7dce6'; // colour of background scribbles
  const STYLES = {
    labels: {
      fillAlpha: 0.35,
      fillAlphaInactive: 0.35,
      outlineWidth: 2,
      outlineWidthInactive: 2,
      renderOutline: true,
      renderOutlineInactive: true,
    },
    scribbles: { fillAlpha: 0.85, fillAlphaInactive: 0.85, renderOutline: false, renderOutlineInactive: false },
    uncertainty: { fillAlpha: 0.5, fillAlphaInactive: 0.5, renderOutline: false, renderOutlineInactive: false },
  };

  const replaced = (values, from, to) => values.map(value => (value === from ? to : value));

  const sorted = names => JSON.stringify(Object.entries(names).sort());
  const sameNames = (told, known) => !told || sorted(told) === sorted(known);

  /**
   * What numbers of labels have become: a label is known by its name, also by a former one.
   *
   * @param {object} known names and numbers as they were
   * @param {object} study names and numbers as they are, and new names by `renamed_labels`
   * @param {Set<number>} needed numbers whose labels must not be lost; one that is gone gets a number of its own
   * @returns {{numbers: Map<number, number>, kept: object}} those that are others now, and the labels that were gone
   */
  function renumbered(known, { label_names: names, renamed_labels: renamed }, needed) {
    const [numbers, kept] = [new Map(), {}];
    const taken = new Set(Object.values(names));
    for (const [name, number] of Object.entries(known)) {
      const present = [names[renamed?.[name]], names[name]].filter(Boolean);
      // A renamed label keeps its number, whichever label has its former name.
      let now = present.includes(number) ? number : present.at(-1);
      if (now === undefined && renamed && needed.has(number)) {
        now = taken.has(number) ? 1 : number;
        while (taken.has(now)) {
          now += 1;
        }
        taken.add(now);
        kept[name] = now;
      }
      if (now !== undefined && now !== number) {
        numbers.set(number, now);
      }
    }
    return { numbers, kept };
  }

  const withNumbers = (values, numbers) =>
    numbers.size ? values.map(value => (numbers.has(value) ? numbers.get(value) : value)) : values;

  /** Voxels of a volume that are others than in `base`, of which scribbles have few; null if there is none. */
  function difference(volume, base) {
    const at = [];
    for (let voxel = 0; voxel < volume.length; voxel++) {
      if (volume[voxel] !== base[voxel]) {
        at.push(voxel);
      }
    }
    return at.length ? { at: Uint32Array.from(at), values: Uint8Array.from(at, voxel => volume[voxel]) } : null;
  }

  /** A volume with the voxels of a `difference`; with null the volume as it is. */
  function laidOver(volume, changes) {
    const laid = volume.slice();
    changes?.at.forEach((voxel, n) => (laid[voxel] = changes.values[n]));
    return laid;
  }

  class Session {
    /**
     * @param {object} viewer
     * @param {object} client
     * @param {object} series as `Viewer.series` gives it
     * @param {object} study as the server gives it
     */
    constructor(viewer, client, series, study) {
      this.viewer = viewer;
      this.client = client;
      this.image = series.image;
      /** What the browser keeps of the draft, as `Drafts` does. */
      this.kept = new Map();
      this.viewports = series.viewports;
      this.grid = new sliceprop.Grid(viewer.grid(series.viewports[0]), {
        shape: study.shape,
        matrix: study.affine_lps,
      });
      this.axis = study.slice_axis;
      this.direction = this.grid.direction(this.axis);
      this.total = study.shape[this.axis];
      this.annotation = new sliceprop.Annotation(study.annotated_slices);
      this.strokes = new sliceprop.Strokes();
      this.version = study.annotation_version;
      this.scribblesChanged = false;
      this.uncertainty = { on: false, version: null, layer: null };
      this.labelsShown = true;
      this.layer = viewer.newLayer('Labels', this.viewports[0], STYLES.labels);
      this.scribbles = viewer.newLayer('Scribbles', this.viewports[0], STYLES.scribbles);
      /** The voxels as they are known here, in the order of the viewer; a stroke is what differs from them. */
      this.values = new Uint8Array(this.grid.size);
      this.marks = new Uint8Array(this.grid.size);
      /** The scribbles as the server has them, also in the order of the viewer, and of which version. */
      this.baseMarks = this.marks;
      this.marksVersion = '';
      this.takeStudy(study);
    }

    /** Fetch the voxels and show them. */
    async load() {
      await this.attach(this.viewports);
      await this.loadLabels();
      await this._loadMarks();
      this.describe();
    }

    /**
     * What the server says about the study is known from now on.
     *
     * @throws {Problem} if its slices are others by now; what is here stays as it is then
     */
    takeStudy(study) {
      this._checkSlices(study);
      this._keepNames(study);
      this.study = study;
      this.suggestion = study.result?.suggestion || null;
    }

    /** Refuse slice numbers of another direction, or of another number of slices: here they mean other slices. */
    _checkSlices({ shape = this.grid.shape, slice_axis: axis = this.axis }) {
      if (String(shape) !== String(this.grid.shape) || axis !== this.axis) {
        throw new sliceprop.Problem(sliceprop.otherSlices(axis === this.axis));
      }
    }

    /** Numbers of labels may have others' names from now on: what was painted here keeps its own. */
    _keepNames(study) {
      if (!this.study) {
        return;
      }
      const { numbers, kept } = renumbered(this.study.label_names, study, this._unsentNumbers());
      Object.assign(study.label_names, kept);
      if (numbers.size) {
        this._setValues(withNumbers(this.values, numbers));
        this._setMarks(withNumbers(this.marks, numbers));
        this.baseMarks = withNumbers(this.baseMarks, numbers);
        this.strokes.clear();
      }
    }

    /** Numbers of the labels that only the browser has voxels of. */
    _unsentNumbers() {
      const slices = this.annotation.draft.map(slice => this.grid.slice(this.values, this.axis, slice));
      return new Set([...slices, this.scribblesChanged ? this.marks : []].flatMap(values => [...new Set(values)]));
    }

    /** Labels in the order of their numbers: `[{segment, name, color}]`. */
    get labels() {
      const { label_names: names, colors } = this.study;
      const sorted = Object.entries(names).sort(([, a], [, b]) => a - b);
      const labels = [];
      for (const [name, segment] of sorted) {
        labels.push({ segment, name, color: colors[name] || sliceprop.freshColor(labels.map(({ color }) => color)) });
      }
      return labels;
    }

    /** Show the layers in the viewports of the moment. */
    async attach(viewports) {
      this.viewports = viewports;
      this.viewer.watch(viewports);
      for (const layer of [this.layer, this.scribbles, this.uncertainty.layer].filter(Boolean)) {
        await layer.show(viewports);
      }
      this.labelsShown || this.showLabels(false);
    }

    /** Show or hide labels and scribbles, to look at the scan below them. */
    showLabels(shown) {
      this.labelsShown = shown;
      [this.layer, this.scribbles].forEach(layer => layer.setVisible(shown));
    }

    /** Take over names and colours of the labels, which may have been changed elsewhere. */
    takeLabels({ label_names, colors, renamed_labels }) {
      const study = { ...this.study, label_names: { ...label_names }, colors, renamed_labels };
      this._keepNames(study);
      Object.assign(this.study, study);
      this.describe();
    }

    /** Ask for names and colours of the labels anew. */
    async reloadLabels() {
      this.takeLabels(await this.client.study(this.image));
    }

    /** Tell the viewer names and colours. */
    describe() {
      const segments = this.labels.map(({ segment, name, color }) => ({ segment, name, color: sliceprop.rgba(color) }));
      this.layer.describe(segments);
      const background = { segment: BACKGROUND, name: 'background', color: sliceprop.rgba(MARKS) };
      this.scribbles.describe([...segments, background]);
    }

    remove() {
      [this.layer, this.scribbles, this.uncertainty.layer].filter(Boolean).forEach(layer => layer.remove());
    }

    // Voxels ------------------------------------------------------------------------------------------------------

    /** The server's labels, under what is the user's here. */
    async loadLabels() {
      const { values } = await this.client.voxels(this.image, 'labels');
      await this.viewer.idle();
      const fresh = this.grid.toViewer(values);
      this.base = fresh.slice();
      for (const slice of this.annotation.draft) {
        this.grid.putSlice(fresh, this.axis, slice, this.grid.slice(this.values, this.axis, slice));
      }
      this._setValues(fresh);
    }

    _setValues(values) {
      this.values = values;
      this.layer.write(values);
    }

    _setMarks(marks) {
      this.marks = marks;
      this.scribbles.write(marks);
    }

    async _loadMarks() {
      const { study } = this;
      const theirs = await this._readMarks(study);
      await this.viewer.idle();
      this._mergeMarks(study, theirs);
    }

    /** The server's scribbles in the order of the viewer, no older than what `study` says of them. */
    async _readMarks(study) {
      if (!study.scribbles) {
        return new Uint8Array(this.grid.size);
      }
      const { values } = await this.client.voxels(this.image, 'scribbles');
      return replaced(this.grid.toViewer(values), SERVER_BACKGROUND, BACKGROUND);
    }

    /** The server's scribbles, under those that were drawn and erased here; whether that changes what is shown. */
    _mergeMarks(study, theirs) {
      const own = difference(this.marks, this.baseMarks);
      const merged = laidOver(theirs, own);
      const changed = difference(merged, this.marks) !== null;
      this.baseMarks = theirs;
      this.marksVersion = study.scribbles_version;
      this.scribblesChanged = difference(merged, theirs) !== null;
      this._setMarks(merged);
      return changed;
    }

    /**
     * A stroke on the labels has ended.
     *
     * @param {boolean} inSlice whether it was painted in a view of the slices; a stroke across slices becomes scribbles
     * @returns {'none' | 'slice' | 'scribbles'} what it was
     */
    stroke(inSlice) {
      const now = this.layer.read();
      const changed = this.grid.changedSlices(this.values, now, this.axis);
      if (!changed.length) {
        return 'none';
      }
      if (!inSlice || changed.length > 1) {
        this._becomeScribbles(now);
        return 'scribbles';
      }
      const [slice] = changed;
      const before = this.grid.slice(this.values, this.axis, slice);
      this.strokes.push({ slice, before, state: this.annotation.state(slice) });
      this.values = now;
      this.annotation.paint(slice);
      this._forgetIfUntouched(slice);
      return 'slice';
    }

    /** A slice whose paint was taken away again is as if it had never been touched. */
    _forgetIfUntouched(slice) {
      const { annotation, grid } = this;
      if (!annotation.isOnServer(slice) && !grid.sliceDiffers(this.values, this.base, this.axis, slice)) {
        annotation.forget(slice);
      }
    }

    _becomeScribbles(now) {
      const marks = this.marks.slice();
      now.forEach((value, n) => {
        if (value !== this.values[n]) {
          marks[n] = value || BACKGROUND;
        }
      });
      this.layer.write(this.values);
      this._setMarks(marks);
      this.scribblesChanged = true;
    }

    /** A stroke on the scribbles has ended. */
    scribble() {
      const now = this.scribbles.read();
      const changed = this.grid.changedSlices(this.marks, now, this.axis).length > 0;
      if (changed) {
        this.marks = now;
        this.scribblesChanged = true;
      }
      return changed;
    }

    /** Take back the last stroke; the slice it was on, null without any. */
    undoStroke() {
      const stroke = this.strokes.pop();
      if (!stroke) {
        return null;
      }
      this.grid.putSlice(this.values, this.axis, stroke.slice, stroke.before);
      this.layer.write(this.values);
      this.annotation.restore(stroke.slice, stroke.state);
      return stroke.slice;
    }

    hasPaint(slice) {
      return this.grid.slice(this.values, this.axis, slice).some(value => value > 0);
    }

    // What goes to the server -------------------------------------------------------------------------------------

    get unsaved() {
      return this.annotation.unsaved.length > 0 || this.annotation.sending || this.scribblesChanged;
    }

    /** Send everything that the server does not have; after somebody else's submission theirs is taken over first. */
    async submit() {
      const slices = this.annotation.unsaved.length > 0 && (await this._sendOver(() => this._sendSlices()));
      const marks = this.scribblesChanged && (await this._sendOver(() => this._sendScribbles()));
      return { merged: slices || marks };
    }

    /** Send something; if somebody else's is there by now it is taken over first. Whether that was anything new. */
    async _sendOver(send) {
      try {
        await send();
        return false;
      } catch (error) {
        if (error.status !== 409) {
          throw error;
        }
        const merged = await this._takeOver();
        await send();
        return merged;
      }
    }

    async _sendSlices() {
      const partly = this.study.partial ? this.annotation.untouched : [];
      const label_info = this._labelInfo();
      const submission = this.annotation.begin();
      try {
        const values = new Uint8Array(this.grid.size);
        for (const slice of submission.annotated) {
          this.grid.putSlice(values, this.axis, slice, this.grid.slice(this.values, this.axis, slice));
        }
        await this._putDrawn(values, partly);
        const answer = await this.client.submit(this.image, this.grid.toServer(values), {
          label_info,
          ...(partly.length ? { partial: true } : { annotated_slices: submission.annotated }),
          slice_axis: this.axis,
          annotation_version: this.version,
        });
        this.version = answer.annotation_version;
        this.study.partial = partly.length > 0;
        this.annotation.submitted(submission, partly.length ? answer.annotated_slices : submission.annotated);
        this.strokes.clear();
        await this._noticeNames(answer);
      } catch (error) {
        this.annotation.failed(submission);
        throw error;
      }
    }

    async _noticeNames({ label_names: names }) {
      if (!sameNames(names, this.study.label_names)) {
        await this.reloadLabels().catch(() => {}); // they come with the next answer
      }
    }

    /** What was drawn on slices on which more is shown: another program drew some labels on them only. */
    async _putDrawn(values, slices) {
      if (slices.length) {
        const { values: drawn } = await this.client.voxels(this.image, 'annotation');
        const theirs = this.grid.toViewer(drawn);
        slices.forEach(slice =>
          this.grid.putSlice(values, this.axis, slice, this.grid.slice(theirs, this.axis, slice)),
        );
      }
    }

    /** Take over somebody else's submission, or one's own whose answer was lost; whether it brought anything new. */
    async _takeOver() {
      const study = await this.client.study(this.image);
      this._checkSlices(study);
      const { values } = await this.client.voxels(this.image, 'labels');
      const marks = await this._readMarks(study);
      await this.viewer.idle();
      const theirs = this.grid.toViewer(values);
      this.takeStudy(study);
      const merged = this.values.slice();
      const before = this.annotation.complete;
      for (const slice of this.annotation.merge(study.annotated_slices)) {
        this.grid.putSlice(merged, this.axis, slice, this.grid.slice(theirs, this.axis, slice));
      }
      const changed = this.grid.changedSlices(this.values, merged, this.axis);
      this.version = study.annotation_version;
      this.describe();
      this._setValues(merged);
      this.strokes.clear(); // a slice of theirs would be taken back with a stroke
      const marked = this._mergeMarks(study, marks);
      return marked || changed.length > 0 || String(before) !== String(this.annotation.complete);
    }

    /** Send the scribbles, unless what was taken over has shown that they are there. */
    async _sendScribbles() {
      const sent = this.marks;
      if (!this.scribblesChanged) {
        return;
      }
      const values = replaced(this.grid.toServer(sent), BACKGROUND, SERVER_BACKGROUND);
      const params = { label_info: this._labelInfo(), annotation_version: this.marksVersion };
      const answer = await this.client.saveScribbles(this.image, values, params);
      this.marksVersion = answer.scribbles_version;
      this.baseMarks = sent;
      this.scribblesChanged = this.marks !== sent; // drawn meanwhile
      await this._noticeNames(answer);
    }

    _labelInfo() {
      return this.labels.map(({ segment, name }) => ({ name, idx: segment }));
    }

    /** Read anew what the server says about the study, its labels and scribbles. */
    async reload() {
      this.takeStudy(await this.client.study(this.image));
      await this.loadLabels();
      await this._loadMarks();
      this.describe();
      if (this.uncertainty.on) {
        await this.showUncertainty(true);
      }
    }

    /** Ask which slice to annotate next. */
    async suggest() {
      const suggestion = await this.client.nextSlice(this.image);
      this._checkSlices({ slice_axis: suggestion.slice_axis });
      this.suggestion = suggestion;
    }

    async showUncertainty(on) {
      const shown = this.uncertainty;
      const version = this.study.result?.uncertainty ? this.study.result.version : null;
      if (on && version !== null && version !== shown.version) {
        const { values } = await this.client.voxels(this.image, 'uncertainty');
        if (!shown.layer) {
          shown.layer = this.viewer.newLayer('Uncertainty', this.viewports[0], STYLES.uncertainty);
          await shown.layer.show(this.viewports);
          const levels = Array.from({ length: sliceprop.LEVELS }, (_, n) => n + 1);
          shown.layer.describe(levels.map(n => ({ segment: n, name: `level ${n}`, color: sliceprop.levelColor(n) })));
        }
        shown.layer.write(sliceprop.uncertaintyLevels(this.grid.toViewer(values)));
        shown.version = version;
      }
      shown.on = on && version !== null;
      shown.layer?.setVisible(shown.on);
    }

    // Drafts ------------------------------------------------------------------------------------------------------

    /** What only the browser has; null if the server has everything. */
    draft() {
      const slices = this.annotation.draft.map(slice => ({
        slice,
        unfinished: this.annotation.isUnfinished(slice),
        values: this.grid.slice(this.values, this.axis, slice),
      }));
      const scribbles = this.scribblesChanged ? difference(this.marks, this.baseMarks) : null;
      const { label_names: names } = this.study;
      return slices.length || scribbles ? { shape: this.grid.shape, axis: this.axis, names, slices, scribbles } : null;
    }

    /** Put back what `draft` gave; false if it does not fit this study. */
    restoreDraft(draft) {
      return this.restoreDrafts([draft]).length > 0;
    }

    /** Put back drafts, later ones over those before; the ones that fit this study. */
    restoreDrafts(drafts) {
      const fits = drafts.filter(draft => this._restore(draft));
      if (fits.length) {
        this.layer.write(this.values);
        this.scribbles.write(this.marks);
        this.scribblesChanged = difference(this.marks, this.baseMarks) !== null;
        this.describe();
      }
      return fits;
    }

    /** Scribbles have no direction, slices fit only along theirs. */
    _restore({ shape, axis, names = {}, slices, scribbles }) {
      if (String(shape) !== String(this.grid.shape) || (slices.length && axis !== this.axis)) {
        return false;
      }
      const drawn = [...slices.map(({ values }) => values), scribbles?.values || []];
      const { numbers, kept } = renumbered(names, this.study, new Set(drawn.flatMap(values => [...new Set(values)])));
      Object.assign(this.study.label_names, kept);
      for (const { slice, unfinished, values } of slices) {
        this.grid.putSlice(this.values, this.axis, slice, withNumbers(values, numbers));
        this.annotation.paint(slice);
        this.annotation.setComplete(slice, !unfinished);
      }
      if (scribbles) {
        this.marks = laidOver(this.marks, { ...scribbles, values: withNumbers(scribbles.values, numbers) });
      }
      return true;
    }

    // Slices ------------------------------------------------------------------------------------------------------

    /** The viewport that slices are painted in, null if none shows them. */
    get sliceViewport() {
      return this.viewer.sliceViewport(this.viewports, this.direction);
    }

    /** Index of the slice that is shown, null if none is. */
    get slice() {
      const viewport = this.sliceViewport;
      return viewport && this.grid.sliceAt(this.axis, this.viewer.focus(viewport));
    }

    /** The number that the viewer shows for a slice. */
    number(slice) {
      const viewport = this.sliceViewport;
      const backwards = viewport && this.viewer.countsBackwards(viewport, this.direction);
      return backwards ? this.total - slice : slice + 1;
    }

    goTo(slice) {
      this.viewer.jump(this.viewports, this.direction, this.grid.sliceCentre(this.axis, slice));
    }
  }

  Object.assign(sliceprop, { BACKGROUND, Session });
})();
