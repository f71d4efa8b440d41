/**
 * Which slices are the user's: what the panel knows of an annotation apart from its voxels.
 *
 * Slices are indices of the server's array. A painted slice counts as annotated completely (what is not painted on it
 * is background) until the user takes that back; a slice without paint counts once the user says so.
 */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const union = (...sets) => [...new Set(sets.flatMap(set => [...set]))].sort((a, b) => a - b);

  class Annotation {
    /** @param {number[]} annotated slices that the server has as annotated */
    constructor(annotated = []) {
      this._server = new Set(annotated);
      this._complete = new Set(annotated);
      this._unfinished = new Set();
      this._painted = new Set(); // since the last submission
      this._sent = new Set(); // by a submission that is under way
    }

    /** Slices that count, ascending. */
    get complete() {
      return union(this._complete);
    }

    /** Slices with paint that do not count yet, ascending. */
    get unfinished() {
      return union(this._unfinished);
    }

    /** Slices that a submission would change on the server, ascending. */
    get unsaved() {
      return union(this._complete, this._server).filter(slice => this.isUnsaved(slice));
    }

    /** Annotated slices that are as the server has them, ascending. */
    get untouched() {
      return this.complete.filter(slice => !this.isUnsaved(slice));
    }

    /** Whether a submission is under way. */
    get sending() {
      return this._sent.size > 0;
    }

    /** Slices whose paint only the browser has, ascending. */
    get draft() {
      return union(this.unsaved, this._unfinished, this._sent);
    }

    /** Every slice that is the user's, ascending: no result of the server may change them. */
    get own() {
      return union(this._complete, this._unfinished, this._painted);
    }

    isComplete(slice) {
      return this._complete.has(slice);
    }

    isUnfinished(slice) {
      return this._unfinished.has(slice);
    }

    isUnsaved(slice) {
      const complete = this._complete.has(slice);
      return complete !== this._server.has(slice) || (complete && this._painted.has(slice));
    }

    /** Whether the server counts a slice as annotated. */
    isOnServer(slice) {
      return this._server.has(slice);
    }

    /** Something was painted on, or erased from, a slice. */
    paint(slice) {
      if (!this._unfinished.has(slice)) {
        this._complete.add(slice);
      }
      this._painted.add(slice);
    }

    /** Say that a slice is complete, or take it back; a slice that is not complete keeps its paint. */
    setComplete(slice, complete) {
      (complete ? this._complete : this._unfinished).add(slice);
      (complete ? this._unfinished : this._complete).delete(slice);
    }

    /** A slice is as the server has it. */
    forget(slice) {
      this._painted.delete(slice);
      this._unfinished.delete(slice);
      this._complete.delete(slice);
      if (this._server.has(slice)) {
        this._complete.add(slice);
      }
    }

    /** Start a submission; what is painted from now on belongs to the next one. */
    begin() {
      const submission = { annotated: this.complete, painted: this._painted };
      this._painted = new Set();
      this._sent = submission.painted;
      return submission;
    }

    /**
     * The server has taken a submission.
     *
     * @param {object} submission of `begin`
     * @param {number[]} counted slices that are annotated by it; others are not, unless painted again since
     */
    submitted({ annotated }, counted = annotated) {
      this._sent = new Set();
      this._server = new Set(counted);
      annotated.filter(slice => !this._server.has(slice) && !this._painted.has(slice)).forEach(s => this.forget(s));
    }

    /** It has not: everything is unsaved as before. */
    failed({ painted }) {
      this._sent = new Set();
      painted.forEach(slice => this._painted.add(slice));
    }

    /**
     * Take over what somebody else submitted; slices that were touched here stay the user's.
     *
     * @param {number[]} annotated the server's annotated slices
     * @returns {number[]} annotated slices whose voxels must come from the server
     */
    merge(annotated) {
      const touched = new Set([...this.draft, ...this._painted]);
      const untouched = union(annotated, this._complete).filter(slice => !touched.has(slice));
      this._server = new Set(annotated);
      untouched.forEach(slice => this.forget(slice));
      return untouched.filter(slice => this._server.has(slice));
    }

    /** What `restore` needs to bring back the state of a slice. */
    state(slice) {
      return [this._complete, this._unfinished, this._painted].map(set => set.has(slice));
    }

    restore(slice, state) {
      [this._complete, this._unfinished, this._painted].forEach((set, n) => set[state[n] ? 'add' : 'delete'](slice));
      if (this._sent.has(slice)) {
        this._painted.add(slice); // the server gets it as it was
      }
    }
  }

  /** The last strokes, to take them back: `{slice, before, state}` each. */
  class Strokes {
    constructor(limit = 50) {
      this._limit = limit;
      this._strokes = [];
    }

    get length() {
      return this._strokes.length;
    }

    push(stroke) {
      this._strokes.push(stroke);
      this._strokes.splice(0, this._strokes.length - this._limit);
    }

    pop() {
      return this._strokes.pop();
    }

    clear() {
      this._strokes = [];
    }
  }

  Object.assign(sliceprop, { Annotation, Strokes });
})();
