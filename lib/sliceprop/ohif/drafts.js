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

  /**
   * Drafts by series, as `Session.draft` makes them.
   *
   * A browser that keeps nothing (private windows, a full disk) must not stop anybody from painting: every failure
   * means that there is no draft.
   */
  class Drafts {
    constructor(factory = window.indexedDB) {
      this._factory = factory;
    }

    async load(series) {
      return (await this._do('readonly', store => store.get(series))) || null;
    }

    save(series, draft) {
      return this._do('readwrite', store => store.put(draft, series));
    }

    remove(series) {
      return this._do('readwrite', store => store.delete(series));
    }

    async _do(mode, act) {
      try {
        const opening = this._factory.open(DATABASE, 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
        const database = await settled(opening);
        try {
          return await settled(act(database.transaction(STORE, mode).objectStore(STORE)));
        } finally {
          database.close();
        }
      } catch (error) {
        console.warn('LabelProp: the browser keeps no drafts', error);
        return undefined;
      }
    }
  }

  Object.assign(sliceprop, { Drafts });
})();
