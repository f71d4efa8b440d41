/** What was painted and not submitted, kept by the browser: a closed tab or a crash loses nothing. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const DATABASE = 'sliceprop';
  const STORE = 'drafts';

  const settled = request =>
    new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });

  const ended = transaction =>
    new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });

  /**
   * A draft in pieces: each slice by series, shape, axis and slice, scribbles by series, shape and where they are.
   *
   * So a slice is never taken for one of another direction, and tabs write over each other's only on the same slice.
   */
  function pieces(series, { slices, scribbles, ...common }) {
    const found = new Map();
    for (const slice of slices) {
      const key = [series, common.shape, common.axis, slice.slice].join(' ');
      found.set(key, { ...common, slices: [slice], scribbles: null });
    }
    const size = common.shape[0] * common.shape[1];
    const blocks = new Map();
    scribbles?.at.forEach((voxel, n) => {
      const block = Math.floor(voxel / size);
      blocks.has(block) || blocks.set(block, { at: [], values: [] });
      blocks.get(block).at.push(voxel);
      blocks.get(block).values.push(scribbles.values[n]);
    });
    for (const [block, part] of blocks) {
      found.set([series, common.shape, 'scribbles', block].join(' '), { ...common, slices: [], scribbles: part });
    }
    return found;
  }

  const equal = (one, other) => one.length === other.length && one.every((value, n) => value === other[n]);

  /** Whether two pieces of the same key hold the same. */
  function same(one, other) {
    const told = ({ names, axis, slices }) => JSON.stringify([names, axis, slices.map(slice => slice.unfinished)]);
    const arrays = ({ slices, scribbles }) => [slices[0]?.values || [], scribbles?.at || [], scribbles?.values || []];
    const others = other && arrays(other);
    return Boolean(other) && told(one) === told(other) && arrays(one).every((array, n) => equal(array, others[n]));
  }

  /**
   * Drafts as `Session.draft` makes them.
   *
   * A browser that keeps nothing (private windows, a full disk) must not stop anybody from painting: every failure
   * means that there is no draft.
   */
  class Drafts {
    constructor(factory = window.indexedDB) {
      this._factory = factory;
      this._saved = Promise.resolve();
    }

    /**
     * All that is kept of a series, also what does not fit it any more.
     *
     * @returns {Promise<Map<string, object>>} drafts by key; earlier releases kept a single one, by the series alone
     */
    async load(series) {
      await this._saved;
      const keys = (await this._do('readonly', store => [store.getAllKeys()]))?.[0] || [];
      const own = keys.filter(key => key === series || key.startsWith(`${series} `));
      const drafts = own.length ? await this._do('readonly', store => own.map(key => store.get(key))) : [];
      return new Map(own.map((key, n) => [key, drafts?.[n]]).filter(([, draft]) => draft));
    }

    /**
     * Keep a draft, or none (null).
     *
     * @param {string} series
     * @param {object | null} draft
     * @param {Map<string, object>} kept what of it is kept already, by key: just what differs is written or removed
     */
    save(series, draft, kept) {
      const now = draft ? pieces(series, draft) : new Map();
      this._saved = this._saved.then(() => this._write(now, kept)); // one after the other
      return this._saved;
    }

    async _write(now, kept) {
      const changed = [...now].filter(([key, piece]) => !same(piece, kept.get(key)));
      const gone = [...kept.keys()].filter(key => !now.has(key));
      const write = store => [
        ...changed.map(([key, piece]) => store.put(piece, key)),
        ...gone.map(key => store.delete(key)),
      ];
      if (changed.length + gone.length && (await this._do('readwrite', write))) {
        kept.clear();
        now.forEach((piece, key) => kept.set(key, piece));
      }
    }

    /** What came of some requests in one transaction, of which all are done or none; null if none could be. */
    async _do(mode, act) {
      try {
        const opening = this._factory.open(DATABASE, 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
        const database = await settled(opening);
        try {
          const transaction = database.transaction(STORE, mode);
          const requests = Promise.all(act(transaction.objectStore(STORE)).map(settled));
          return (await Promise.all([requests, ended(transaction)]))[0];
        } finally {
          database.close();
        }
      } catch (error) {
        console.warn('LabelProp: the browser keeps no drafts', error);
        return null;
      }
    }
  }

  Object.assign(sliceprop, { Drafts });
})();
