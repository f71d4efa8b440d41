// The panel's scripts as the browser runs them, in a window that the test provides.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const FOLDER = new URL('../../lib/sliceprop/ohif/', import.meta.url);

/** `window.sliceprop` after these scripts have run. */
export function load(names, window = {}) {
  for (const name of names) {
    const script = readFileSync(fileURLToPath(new URL(`${name}.js`, FOLDER)), 'utf8');
    new Function('window', script)(window);
  }
  return window.sliceprop;
}
