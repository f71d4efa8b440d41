/** What OHIF registers: the panel, a layout, and the mode that brings both together. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const EXTENSION = '@sliceprop/extension-labelprop';
  const PANEL = `${EXTENSION}.panelModule.labelprop`;
  const PROTOCOL = 'labelprop';
  /** The slices as they were acquired, large; the two other planes beside them. */
  const VIEWPORTS = ['labelprop-slices', 'labelprop-second', 'labelprop-third'];

  /** A React element without React, which OHIF's bundle keeps to itself: a `div` that the panel fills. */
  function element(ref) {
    const props = { className: 'labelprop-panel' };
    return { $$typeof: Symbol.for('react.element'), type: 'div', key: null, ref, props, _owner: null, _store: {} };
  }

  function viewport(viewportId, orientation) {
    const windowing = { type: 'voi', id: 'labelprop', source: true, target: true, options: { syncColormap: true } };
    return {
      viewportOptions: {
        viewportId,
        orientation,
        toolGroupId: 'mpr',
        viewportType: 'volume',
        initialImageOptions: { preset: 'middle' },
        syncGroups: [windowing],
      },
      displaySets: [{ id: 'activeDisplaySet' }],
    };
  }

  function hangingProtocol() {
    const volume = { attribute: 'isReconstructable', constraint: { equals: { value: true } } };
    const layoutOptions = [
      { x: 0, y: 0, width: 2 / 3, height: 1 },
      { x: 2 / 3, y: 0, width: 1 / 3, height: 1 / 2 },
      { x: 2 / 3, y: 1 / 2, width: 1 / 3, height: 1 / 2 },
    ];
    return {
      id: PROTOCOL,
      name: 'LabelProp',
      locked: true,
      isPreset: true,
      icon: 'layout-advanced-axial-primary',
      availableTo: {},
      editableBy: {},
      protocolMatchingRules: [],
      imageLoadStrategy: 'interleaveCenter',
      displaySetSelectors: { activeDisplaySet: { seriesMatchingRules: [{ weight: 1, required: true, ...volume }] } },
      stages: [
        {
          id: PROTOCOL,
          name: 'LabelProp',
          viewportStructure: { layoutType: 'grid', properties: { rows: 2, columns: 3, layoutOptions } },
          viewports: ['acquisition', 'sagittal', 'coronal'].map((plane, n) => viewport(VIEWPORTS[n], plane)),
        },
      ],
    };
  }

  let panel = null;
  let place = null;

  /** OHIF shows the panel in `node`, perhaps before the mode is entered. One function, else React mounts it anew. */
  function mount(node) {
    place = node;
    panel?.mount(node);
  }

  const extension = {
    id: EXTENSION,
    getPanelModule: () => [
      {
        name: 'labelprop',
        iconName: 'Series',
        iconLabel: 'LabelProp',
        label: 'LabelProp',
        component: () => element(mount),
      },
    ],
    getHangingProtocolModule: () => [{ name: PROTOCOL, protocol: hangingProtocol() }],
    onModeEnter({ servicesManager: { services } }) {
      panel = new sliceprop.Panel(services);
      panel.start();
      panel.mount(place);
      if (!services.panelService.getPanels('right').some(({ id }) => id === PANEL)) {
        services.panelService.addPanel('right', PANEL);
      }
    },
    onModeExit() {
      panel?.stop();
      panel = null;
    },
  };

  /** OHIF's Segmentation mode (its tools and toolbar) with our layout, and our panel before its own. */
  const mode = {
    id: '@sliceprop/mode-labelprop',
    async modeFactory({ loadModules }) {
      const [stock] = await loadModules(['@ohif/mode-segmentation']);
      const base = await stock.modeFactory({ modeConfiguration: {} });
      const [route] = base.routes;
      const layoutTemplate = options => {
        const template = route.layoutTemplate(options);
        const { rightPanels } = template.props;
        return {
          ...template,
          props: { ...template.props, leftPanelClosed: true, rightPanels: [PANEL, ...rightPanels] },
        };
      };
      return {
        ...base,
        id: '@sliceprop/mode-labelprop',
        routeName: 'labelprop',
        displayName: 'LabelProp',
        hangingProtocol: PROTOCOL,
        routes: [{ ...route, path: 'labelprop', layoutTemplate }],
      };
    },
  };

  Object.assign(sliceprop, { PROTOCOL, VIEWPORTS });
  window.config?.extensions.push(extension);
  window.config?.modes.push(mode);
})();
