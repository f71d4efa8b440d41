/** HTML elements: the few words that the panel is written in. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const PATHS = {
    look: 'M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18',
    brush: 'M20 4c-5 2-9 6-11 9l2 2c3-2 7-6 9-11zM8 14c-3 0-3 4-5 5 3 2 8 1 8-3',
    eraser: 'M4 15 13 6l6 6-7 7H8zM9 10l6 6M8 19h12',
    scribble: 'M4 17c2-9 5-9 6-5s1 6 3 2 3-7 7-8',
    eye: 'M2 12s4-6 10-6 10 6 10 6-4 6-10 6-10-6-10-6zM12 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5',
    undo: 'M8 5 4 9l4 4M4 9h9a6 6 0 0 1 0 12h-3',
    pencil: 'M5 19l1-4L16 5l3 3L9 18zM14 7l3 3',
    plus: 'M12 5v14M5 12h14',
    check: 'M5 13l4 4L19 7',
    close: 'M6 6l12 12M18 6 6 18',
    save: 'M5 4h11l3 3v13H5zM8 4v5h7V4M8 20v-6h8v6',
    right: 'M5 12h13M13 6l6 6-6 6',
    left: 'M19 12H6M11 6l-6 6 6 6',
  };

  /** An HTML element: `h('button', {class: 'primary', onclick}, 'Text', child)`. */
  function h(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith('on')) {
        node.addEventListener(name.slice(2), value);
      } else if (typeof value === 'boolean') {
        node.toggleAttribute(name, value);
      } else if (value !== undefined && value !== null) {
        node.setAttribute(name, value);
      }
    }
    node.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
    return node;
  }

  function icon(name) {
    const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    svg.setAttribute('viewBox', '0 0 24 24');
    svg.setAttribute('aria-hidden', 'true');
    const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    path.setAttribute('d', PATHS[name]);
    svg.append(path);
    return svg;
  }

  /** A button that keeps the keyboard with the viewer, whose shortcuts go on working after a click. */
  function button(attributes, ...children) {
    return h(
      'button',
      { type: 'button', onpointerup: event => event.currentTarget.blur(), ...attributes },
      ...children,
    );
  }

  /** A titled part of the panel; `aside`, one element or several, stands beside the title. */
  function section(title, name, body, aside = null) {
    return h('section', { 'data-labelprop': name }, h('h2', {}, h('span', {}, title), aside), body);
  }

  Object.assign(sliceprop, { button, h, icon, section });
})();
