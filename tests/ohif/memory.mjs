// A viewer, a server and a browser's store in memory, the viewer counting slices from the other end.
const SLICES = 6;
const SERVER_GRID = [
  [-1, 0, 0, 0],
  [0, -1, 0, 0],
  [0, 0, 4, 0],
  [0, 0, 0, 1],
];
const viewerGrid = slices => [
  [-1, 0, 0, 0],
  [0, -1, 0, 0],
  [0, 0, -4, 4 * (slices - 1)],
  [0, 0, 0, 1],
];
export const SIZE = 6 * SLICES;

const unanswered = () => new Error('The server does not answer.');
const elsewhere = () => Object.assign(new Error('Somebody else submitted.'), { status: 409 });

class MemoryLayer {
  constructor(name, size) {
    this.id = name;
    this.values = new Uint8Array(size);
  }

  read() {
    return this.values.slice();
  }

  write(values) {
    this.values = values.slice();
  }

  /** Paint a voxel of the viewer. */
  paint(i, j, k, value) {
    this.values[i + 3 * (j + 2 * k)] = value;
  }

  async show() {}
  describe() {}

  setVisible(visible) {
    this.visible = visible;
  }

  remove() {}
}

export class MemoryViewer {
  constructor(slices = SLICES) {
    this.slices = slices;
  }

  grid() {
    return { shape: [3, 2, this.slices], matrix: viewerGrid(this.slices) };
  }

  newLayer(name) {
    return new MemoryLayer(name, 6 * this.slices);
  }

  watch() {}
  async idle() {}
}

export class MemoryServer {
  constructor(slices = SLICES) {
    this.slices = slices;
    this.labels = new Uint8Array(6 * slices);
    this.drawn = null; // of a partial annotation
    this.marks = new Uint8Array(6 * slices);
    this.annotated = [];
    this.names = { disc: 1, core: 2 };
    this.renamed = {};
    this.number = 0;
    this.marksNumber = 0;
    this.axis = 2;
    this.down = false;
    this.silent = false;
  }

  async study() {
    return {
      shape: [3, 2, this.slices],
      affine_lps: SERVER_GRID,
      slice_axis: this.axis,
      annotated_slices: this.annotated,
      annotation_version: `v${this.number}`,
      partial: this.drawn !== null,
      label_names: { ...this.names },
      renamed_labels: this.renamed,
      colors: {},
      scribbles: this.marks.some(value => value > 0),
      scribbles_version: `m${this.marksNumber}`,
      result: null,
    };
  }

  async voxels(image, kind) {
    const known = { scribbles: this.marks, annotation: this.drawn || this.labels };
    return { values: (known[kind] || this.labels).slice() };
  }

  async submit(image, values, params) {
    if (this.down) {
      throw unanswered();
    }
    if (params.annotation_version !== `v${this.number}`) {
      throw elsewhere();
    }
    this.told = Object.fromEntries(params.label_info.map(({ name, idx }) => [idx, name]));
    params.partial ? this.takePartial(values) : this.take(values, params.annotated_slices);
    if (this.silent) {
      throw unanswered(); // it ends before it has answered
    }
    const { annotated: annotated_slices, names: label_names } = this;
    return { annotation_version: `v${this.number}`, label_names, annotated_slices };
  }

  /** Labels on some slices, which are shown with what was propagated there. */
  takePartial(drawn) {
    const shown = this.labels.map((value, voxel) => drawn[voxel] || value);
    this.take(shown, [...Array(6).keys()].filter(k => drawn.subarray(6 * k, 6 * k + 6).some(value => value > 0)));
    this.drawn = drawn.slice();
  }

  take(values, annotated) {
    this.labels = values.slice();
    this.drawn = null;
    this.annotated = annotated;
    this.number += 1;
  }

  async saveScribbles(image, values, params) {
    if (this.down) {
      throw unanswered();
    }
    if (params.annotation_version !== `m${this.marksNumber}`) {
      throw elsewhere();
    }
    this.mark(values);
    if (this.silent) {
      throw unanswered();
    }
    return { scribbles_version: `m${this.marksNumber}`, label_names: this.names };
  }

  mark(values) {
    this.marks = values.slice();
    this.marksNumber += 1;
  }

  async nextSlice() {
    return { slice: 1, slice_axis: this.axis, reason: '' };
  }
}

/** As much of IndexedDB as the drafts need; its contents outlive those who opened it. */
export class MemoryStore {
  constructor() {
    this.kept = new Map();
    this.full = false;
  }

  open() {
    return answer(() => ({ transaction: (_, mode) => this._transaction(mode), close() {} }));
  }

  /** Like a browser's: its requests succeed, and a disk that is full shows when all of it is to be kept. */
  _transaction(mode) {
    const changed = new Map(this.kept);
    const transaction = {};
    let open = 0;
    const request = act => {
      open += 1;
      return answer(act, () => (open -= 1) || queueMicrotask(() => this._end(transaction, mode, changed)));
    };
    transaction.objectStore = () => ({
      getAllKeys: () => request(() => [...changed.keys()].sort()),
      get: key => request(() => changed.get(key)),
      put: (draft, key) => request(() => void changed.set(key, structuredClone(draft))),
      delete: key => request(() => void changed.delete(key)),
    });
    return transaction;
  }

  _end(transaction, mode, changed) {
    if (mode === 'readwrite' && this.full) {
      transaction.error = new Error('QuotaExceededError');
      transaction.onabort();
      return;
    }
    this.kept = changed;
    transaction.oncomplete();
  }
}

/** A request that succeeds a moment later; `then` is called after that. */
function answer(act, then = () => {}) {
  const request = {};
  queueMicrotask(() => {
    request.result = act();
    request.onsuccess();
    then();
  });
  return request;
}
