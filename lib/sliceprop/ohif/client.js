/** The server's requests, and its errors as sentences. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const SILENT = 'The server does not answer. What you painted is safe here; try again when the server is back.';

  /** Something that the user should read; `status` is that of HTTP, 0 without an answer. */
  class Problem extends Error {
    constructor(message, status = 0) {
      super(message);
      this.status = status;
    }
  }

  /** What the server says about a request that failed. */
  async function sentence(response) {
    const text = await response.text().catch(() => '');
    try {
      const { detail } = JSON.parse(text);
      if (typeof detail === 'string' && detail) {
        return detail;
      }
    } catch {
      // not JSON: an error page of something in between
    }
    return `The server could not do this (error ${response.status}); its log says why.`;
  }

  /** Where the server's requests start: the address of the viewer without `/ohif/...`. */
  function serverRoot(path) {
    const end = path.indexOf('/ohif');
    return end < 0 ? '' : path.slice(0, end);
  }

  class Client {
    /**
     * @param {string} root where the server's requests start
     * @param {typeof fetch} request
     */
    constructor(root = serverRoot(window.location.pathname), request = (...args) => window.fetch(...args)) {
      this._root = root;
      this._request = request;
    }

    /** Labels, slices and the last result of a study. */
    study(image) {
      return this._json('GET', '/labelprop/study', { image });
    }

    /**
     * A volume in the server's order.
     *
     * @param {string} kind `labels`, `uncertainty`, `annotation` or `scribbles`
     * @returns {Promise<{values: Uint8Array, version: string}>}
     * @throws {Problem} also if a label number does not fit into the viewer's segmentations
     */
    async voxels(image, kind) {
      const response = await this._call('GET', '/labelprop/voxels', { image, kind });
      const buffer = await response.arrayBuffer().catch(() => {
        throw new Problem(SILENT);
      });
      const wide = response.headers.get('X-Dtype') === 'uint16';
      const values = wide ? new Uint16Array(buffer) : new Uint8Array(buffer);
      if (wide && values.some(value => value > 255)) {
        throw new Problem('This study has label numbers above 253, which the viewer cannot show.');
      }
      const version = response.headers.get('X-Annotation-Version') || '';
      return { values: wide ? Uint8Array.from(values) : values, version };
    }

    /** Submit the annotated slices. */
    submit(image, values, params) {
      return this._json('PUT', '/datastore/label', { image, tag: 'sparse' }, this._form(values, params));
    }

    saveScribbles(image, values, params) {
      return this._json('PUT', '/labelprop/scribbles', { image }, this._form(values, params));
    }

    saveLabels(image, labels) {
      return this._json('PUT', '/labelprop/labels', { image }, { labels });
    }

    train(image, options = {}) {
      return this._json('POST', '/train/labelprop', {}, { image, ...options });
    }

    progress(image) {
      return this._json('GET', '/labelprop/progress', { image });
    }

    cancelTraining(image) {
      return this._json('DELETE', '/train/', { image });
    }

    propagate(image) {
      return this._json('POST', '/infer/labelprop', { image, output: 'json' });
    }

    undoPropagation(image) {
      return this._json('POST', '/labelprop/undo', { image });
    }

    saveFinal(image) {
      return this._json('POST', '/labelprop/final', { image });
    }

    nextSlice(image) {
      return this._json('POST', '/activelearning/next_slice', {}, { image });
    }

    _form(values, params) {
      const form = new FormData();
      form.append('params', JSON.stringify(params));
      form.append('label', new Blob([values]), 'label.bin');
      return form;
    }

    async _json(method, path, query, body) {
      const response = await this._call(method, path, query, body);
      return response.json().catch(() => {
        throw new Problem(SILENT);
      });
    }

    async _call(method, path, query = {}, body = undefined) {
      const search = new URLSearchParams(query).toString();
      const json = body !== undefined && !(body instanceof FormData);
      const response = await this._request(`${this._root}${path}${search && `?${search}`}`, {
        method,
        cache: 'no-store',
        headers: json ? { 'Content-Type': 'application/json' } : {},
        body: json ? JSON.stringify(body) : body,
      }).catch(() => {
        throw new Problem(SILENT);
      });
      if (!response.ok) {
        throw new Problem(await sentence(response), response.status);
      }
      return response;
    }
  }

  Object.assign(sliceprop, { Client, Problem, serverRoot });
})();
