/** What the panel says: numbers, times and sentences. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  /** Colours that are told apart on a grey scan, for labels in the order in which they are added. */
  const PALETTE = [
    '#e6564f',
    '#4fc26b',
    '#4f8fe6',
    '#e6c44f',
    '#b765e0',
    '#46cfd6',
    '#f08a3c',
    '#e36bb0',
    '#a3d94a',
    '#8f7ff0',
    '#d0a178',
    '#3fb598',
  ];

  /** The first colour of the palette that is not taken. */
  function freshColor(taken) {
    const used = new Set(taken.map(color => color.toLowerCase()));
    return PALETTE.find(color => !used.has(color)) || PALETTE[taken.length % PALETTE.length];
  }

  /** `#rrggbb` as `[r, g, b, a]`, 0 to 255. */
  function rgba(color, alpha = 255) {
    const value = parseInt(String(color).replace('#', ''), 16) || 0;
    return [(value >> 16) & 255, (value >> 8) & 255, value & 255, alpha];
  }

  /** Seconds as `8 s`, `1 min 20 s` or `2 h 5 min`. */
  function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds));
    const [large, small, units] =
      whole < 3600
        ? [Math.floor(whole / 60), whole % 60, ['min', 's']]
        : [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60), ['h', 'min']];
    if (!large) {
      return `${small} ${units[1]}`;
    }
    return small ? `${large} ${units[0]} ${small} ${units[1]}` : `${large} ${units[0]}`;
  }

  /** A Dice as `0.93`, a dash where it is not known. */
  function dice(value) {
    return typeof value === 'number' && Number.isFinite(value) ? value.toFixed(2) : '–';
  }

  /** A gain as `+0.04`; `less than 0.01` where it would read as nothing. */
  function gain(value) {
    return value < 0.005 ? 'less than 0.01' : `+${value.toFixed(2)}`;
  }

  /** `slice 4`, `slices 4 and 9`, `slices 2, 4 and 9`. */
  function slices(numbers) {
    const sorted = [...numbers].sort((a, b) => a - b);
    const last = sorted.pop();
    return sorted.length ? `slices ${sorted.join(', ')} and ${last}` : `slice ${last}`;
  }

  /**
   * A sentence of the server with its slice indices replaced by the numbers that the viewer shows.
   *
   * @param {string} sentence as in "It lies between the annotated slices 3 and 9, where ..."
   * @param {(index: number) => number} number
   */
  function renumber(sentence, number) {
    return sentence.replace(/\bslices? \d+(?:(?:, \d+)* and \d+)?/g, found =>
      slices(found.match(/\d+/g).map(index => number(Number(index)))),
    );
  }

  /** A reason of the server, which it tells without capital and full stop, as a sentence. */
  function asSentence(reason) {
    const text = reason.charAt(0).toUpperCase() + reason.slice(1);
    return /[.!?…]$/.test(text) ? text : `${text}.`;
  }

  /** How far a training is, in a few words; `silent` while the server does not answer. */
  function trainingState({ status, seconds_left: left, epoch, total_epochs: total, silent = false }) {
    if (silent) {
      return 'The server does not answer; waiting for it …';
    }
    if (status === 'SUBMITTED' || !epoch) {
      return 'Starting to train …';
    }
    return `Training, epoch ${epoch} of ${total}: ${left > 0 ? `about ${duration(left)} left` : 'finishing'}`;
  }

  /** How much of a training is done, 0 to 1: by time, which is what ends it. */
  function trainingShare({ seconds = 0, seconds_left: left = 0, epoch = 0 }) {
    return epoch && seconds + left > 0 ? Math.min(1, seconds / (seconds + left)) : 0;
  }

  /** Why a series cannot be annotated whose voxels differ between viewer and server; by their shapes. */
  function otherVoxels(viewer, server) {
    const size = shape => shape.join(' × ');
    const more = viewer.reduce((product, n) => product * n) > server.reduce((product, n) => product * n);
    return more
      ? `The archive holds more of this series than when it was annotated here (${size(viewer)} voxels, not ` +
          `${size(server)}). What was annotated is kept on the server; erase the study there to annotate all of it.`
      : 'The viewer shows other voxels of this series than the server has; it cannot be annotated here.';
  }

  /** Why nothing goes to and fro between the panel and a study whose slices are others by now. */
  function otherSlices(sameDirection) {
    const what = sameDirection
      ? 'This series has other slices by now'
      : 'Somebody annotated this study along another direction meanwhile';
    return (
      `${what}, so nothing was sent. Reload the page to go on; what you painted and did not submit stays ` +
      'in this browser until it fits again.'
    );
  }

  /** That drafts wait in the browser, since they do not fit a series of this shape along its direction. */
  function waitingDrafts(drafts, shape) {
    const count = drafts.reduce((sum, draft) => sum + draft.slices.length, 0);
    const what = count === 1 ? 'A slice' : count ? `${count} slices` : 'Scribbles';
    const grown = drafts.some(draft => String(draft.shape) !== String(shape));
    return (
      `${what} that you painted and did not submit ${count === 1 ? 'waits' : 'wait'} in this browser, painted ` +
      `${grown ? 'when this series had other slices' : 'along another direction than the study is annotated now'}. ` +
      `${count === 1 ? 'It comes' : 'They come'} back once the study fits again.`
    );
  }

  const LEVELS = 6;
  const CERTAIN = 0.15;

  /** Uncertainty (0..255) as levels: 0 where it is low, then 1 to `LEVELS`. */
  function uncertaintyLevels(values) {
    const table = Uint8Array.from({ length: 256 }, (_, value) => {
      const share = (value / 255 - CERTAIN) / (1 - CERTAIN);
      return share <= 0 ? 0 : Math.min(LEVELS, 1 + Math.floor(share * LEVELS));
    });
    return values.map(value => table[value]);
  }

  /** The colour of a level, from yellow to red. */
  function levelColor(level) {
    return [255, Math.round(230 - (200 * (level - 1)) / (LEVELS - 1)), 40, 255];
  }

  /** What is wrong with a label's name, null if nothing. */
  function nameProblem(name, others) {
    if (!name.trim()) {
      return 'A label needs a name.';
    }
    if (others.some(other => other.toLowerCase() === name.trim().toLowerCase())) {
      return `There is a label ${name.trim()} already.`;
    }
    return name.trim() === 'background' ? 'Background is what is not painted; it needs no label.' : null;
  }

  Object.assign(sliceprop, {
    LEVELS,
    asSentence,
    dice,
    duration,
    freshColor,
    gain,
    levelColor,
    nameProblem,
    otherSlices,
    otherVoxels,
    renumber,
    rgba,
    slices,
    trainingShare,
    trainingState,
    uncertaintyLevels,
    waitingDrafts,
  });
})();
