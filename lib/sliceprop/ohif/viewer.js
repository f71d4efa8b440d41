/**
 * The viewer as the panel needs it: which series is shown, layers of voxels over it, brushes, the current slice.
 *
 * This is the only file that knows OHIF's services and cornerstone; OHIF puts both on `window`.
 */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const LABELMAP = 'Labelmap';
  const PARALLEL = 0.9; // cosine
  const STEP = 0.7; // of the brush's radius, from one disc of a stroke to the next
  const TOOLS = {
    brush: { name: 'CircularBrush', strategy: 'FILL_INSIDE_CIRCLE' },
    eraser: { name: 'CircularEraser', strategy: 'ERASE_INSIDE_CIRCLE' },
    look: { name: 'WindowLevel' },
  };
  const PLANES = { sagittal: [1, 0, 0], coronal: [0, 1, 0], axial: [0, 0, 1] };

  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

  /** Let a brush paint all the way between two places of the mouse, which lie far apart when the page is slow. */
  const drawLines = brush => {
    if (brush.drawsLines) {
      return;
    }
    const drag = brush._dragCallback;
    brush._dragCallback = event => {
      const { lastPoints, currentPoints } = event.detail;
      for (const canvas of between(lastPoints, currentPoints, STEP * brush.configuration.brushSize)) {
        drag({ detail: { ...event.detail, currentPoints: { ...currentPoints, canvas } } });
      }
      drag(event);
    };
    brush.drawsLines = true;
  };

  /** Canvas points from `last` on, at most `step` mm apart, without `current`. */
  const between = (last, current, step) => {
    const steps = Math.ceil(Math.hypot(...current.world.map((mm, axis) => mm - last.world[axis])) / step);
    return Array.from({ length: steps }, (_, n) =>
      last.canvas.map((from, axis) => from + (current.canvas[axis] - from) * (n / steps)),
    );
  };

  let layers = 0;

  /** One segmentation over the scan: a number per voxel, each with a colour. */
  class Layer {
    /**
     * @param {object} service OHIF's segmentationService
     * @param {string} name shown in OHIF's lists
     * @param {string} volumeId of the scan
     * @param {object} style of cornerstone, for the fill and the outline
     */
    constructor(service, name, volumeId, style) {
      const { cornerstone, cornerstoneTools } = window;
      this._service = service;
      this._numbers = [];
      this._segmentation = cornerstoneTools.segmentation;
      this.id = `labelprop-${name.toLowerCase()}-${++layers}`;
      this._volume = cornerstone.volumeLoader.createAndCacheDerivedLabelmapVolume(volumeId, { volumeId: this.id });
      const colors = Array.from({ length: 256 }, () => [0, 0, 0, 0]);
      this._colorTable = this._segmentation.config.color.addColorLUT(colors);
      service.addOrUpdateSegmentation({
        segmentationId: this.id,
        representation: { type: LABELMAP, data: { volumeId: this.id, referencedVolumeId: volumeId } },
        config: { label: `LabelProp: ${name}`, segments: { 1: { segmentIndex: 1, label: '1', active: true } } },
      });
      service.setStyle({ segmentationId: this.id, type: LABELMAP }, style);
    }

    /** The voxels, in the order of the viewer. */
    read() {
      return new Uint8Array(this._volume.voxelManager.getCompleteScalarDataArray());
    }

    write(values) {
      this._volume.voxelManager.setCompleteScalarDataArray(values);
      this._segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.id);
    }

    /** Show the layer in these viewports, where it is not shown yet. */
    async show(viewports) {
      for (const viewport of viewports) {
        if (!this._service.getSegmentationRepresentations(viewport.id, { segmentationId: this.id }).length) {
          await this._service.addSegmentationRepresentation(viewport.id, { segmentationId: this.id, type: LABELMAP });
          this._segmentation.config.color.setColorLUT(viewport.id, this.id, this._colorTable);
        }
      }
    }

    /** Names and colours of its numbers: `[{segment, name, color: [r, g, b, a]}]`. */
    describe(segments) {
      this._numbers = segments.map(({ segment }) => segment);
      const active = this.activeSegment;
      const described = segments.map(({ segment, name }) => [
        segment,
        { segmentIndex: segment, label: name, locked: false, active: segment === active, cachedStats: {} },
      ]);
      this._segmentation.updateSegmentations([
        { segmentationId: this.id, payload: { segments: Object.fromEntries(described) } },
      ]);
      for (const viewportId of this._viewportIds()) {
        for (const { segment, color } of segments) {
          this._segmentation.config.color.setSegmentIndexColor(viewportId, this.id, segment, color);
        }
      }
    }

    get activeSegment() {
      return this._segmentation.segmentIndex.getActiveSegmentIndex(this.id);
    }

    activate(segment, viewports) {
      for (const viewport of viewports) {
        this._service.setActiveSegmentation(viewport.id, this.id);
      }
      this._segmentation.segmentIndex.setActiveSegmentIndex(this.id, segment);
    }

    setVisible(visible) {
      for (const viewportId of this._viewportIds()) {
        const which = { segmentationId: this.id, type: LABELMAP };
        for (const { segments } of this._segmentation.state.getSegmentationRepresentations(viewportId, which)) {
          // Only numbers that are listed here can be hidden, and cornerstone lists those alone that were active once.
          this._numbers.forEach(number => (segments[number] ||= { visible: true }));
        }
        this._segmentation.config.visibility.setSegmentationRepresentationVisibility(viewportId, which, visible);
      }
    }

    remove() {
      this._segmentation.removeSegmentation(this.id);
    }

    _viewportIds() {
      return this._service.getViewportIdsWithSegmentation(this.id);
    }
  }

  class Viewer {
    /** @param {object} services OHIF's */
    constructor(services) {
      this._services = services;
      this._unsubscribe = [];
      this._listened = new Map();
      this._waiting = [];
      this._painted = new Set();
      /** Called when other viewports or another series are shown. */
      this.onLayout = () => {};
      /** Called with the id of a layer when a stroke on it has ended. */
      this.onStroke = () => {};
      /** Called when a viewport shows another slice. */
      this.onSlice = () => {};
      /** Called when another tool is chosen in OHIF's toolbar. */
      this.onTool = () => {};
    }

    start() {
      const { viewportGridService: grid, cornerstoneViewportService: viewports, displaySetService: sets } = this._services;
      const layout = () => this.onLayout();
      for (const event of ['ACTIVE_VIEWPORT_ID_CHANGED', 'GRID_STATE_CHANGED', 'VIEWPORTS_READY']) {
        this._unsubscribe.push(grid.subscribe(grid.EVENTS[event], layout).unsubscribe);
      }
      this._unsubscribe.push(viewports.subscribe(viewports.EVENTS.VIEWPORT_DATA_CHANGED, layout).unsubscribe);
      this._unsubscribe.push(sets.subscribe(sets.EVENTS.DISPLAY_SETS_ADDED, layout).unsubscribe);
      const { Events } = window.cornerstoneTools.Enums;
      this._onEvent(window.cornerstone.eventTarget, Events.SEGMENTATION_DATA_MODIFIED, event =>
        this._strokeGoesOn(event.detail.segmentationId),
      );
      this._onEvent(window.cornerstone.eventTarget, Events.TOOL_ACTIVATED, () => this.onTool());
      this._onEvent(window, 'pointerdown', () => (this._pressed = true), true);
      this._onEvent(window, 'pointerup', () => this._released(), true);
    }

    stop() {
      this._unsubscribe.forEach(unsubscribe => unsubscribe());
      this._unsubscribe = [];
      for (const [element, listener] of this._listened) {
        element.removeEventListener(window.cornerstone.Enums.Events.CAMERA_MODIFIED, listener);
      }
      this._listened.clear();
    }

    _onEvent(target, name, listener, capture = false) {
      target.addEventListener(name, listener, capture);
      this._unsubscribe.push(() => target.removeEventListener(name, listener, capture));
    }

    _strokeGoesOn(layerId) {
      this._painted.add(layerId);
      if (!this._pressed) {
        this._strokeEnds();
      }
    }

    _released() {
      this._pressed = false;
      window.setTimeout(() => this._strokeEnds(), 0); // the brush handles the same event, perhaps later
    }

    _strokeEnds() {
      if (this._pressed) {
        return;
      }
      const painted = this._painted;
      this._painted = new Set();
      painted.forEach(layerId => this.onStroke(layerId));
      this._waiting.splice(0).forEach(resolve => resolve());
    }

    /** Resolves once no stroke is under way, so that nothing is written over a half-painted one. */
    async idle() {
      if (this._pressed) {
        await new Promise(resolve => this._waiting.push(resolve));
      }
    }

    /**
     * The series in the active viewport.
     *
     * @returns {{image: string, title: string, reconstructable: boolean, viewports: object[]} | null}
     *   `viewports` are those that show it as a volume
     */
    series() {
      const { viewportGridService, displaySetService } = this._services;
      const { viewports, activeViewportId } = viewportGridService.getState();
      const active = viewports.get(activeViewportId);
      const uid = active?.displaySetInstanceUIDs?.[0];
      const displaySet = uid && displaySetService.getDisplaySetByUID(uid);
      if (!displaySet) {
        return null;
      }
      const showing = [...viewports.values()].filter(viewport => viewport.displaySetInstanceUIDs?.includes(uid));
      return {
        image: displaySet.SeriesInstanceUID,
        title: displaySet.SeriesDescription || displaySet.Modality || '',
        reconstructable: Boolean(displaySet.isReconstructable),
        viewports: showing.map(viewport => this._volumeViewport(viewport.viewportId)).filter(Boolean),
      };
    }

    /** The first series of a study without any volume, which our layout leaves out; null of other studies. */
    leftOut() {
      const sets = this._services.displaySetService.getActiveDisplaySets();
      const images = sets.filter(({ numImageFrames }) => numImageFrames > 0);
      const volume = images.some(({ isReconstructable }) => isReconstructable);
      return volume || !images.length ? null : images[0].SeriesInstanceUID;
    }

    _volumeViewport(id) {
      const viewport = this._services.cornerstoneViewportService.getCornerstoneViewport(id);
      const shown = viewport?.type === window.cornerstone.Enums.ViewportType.ORTHOGRAPHIC && viewport.getVolumeId?.();
      return shown && window.cornerstone.cache.getVolume(shown) ? viewport : null;
    }

    /** Show the active series as a volume in three planes. */
    showAsVolume() {
      window.commandsManager.run('setHangingProtocol', { protocolId: sliceprop.PROTOCOL });
    }

    /** The voxel grid of the scan in a viewport. */
    grid(viewport) {
      const { dimensions, origin, spacing, direction } = window.cornerstone.cache.getVolume(viewport.getVolumeId());
      return { shape: [...dimensions], matrix: sliceprop.imageMatrix([...origin], [...spacing], [...direction]) };
    }

    newLayer(name, viewport, style) {
      return new Layer(this._services.segmentationService, name, viewport.getVolumeId(), style);
    }

    /** Tell `onSlice` about these viewports; new ones are turned so that no two show the same plane. */
    watch(viewports) {
      const fresh = viewports.filter(({ element }) => !this._listened.has(element));
      for (const { element } of fresh) {
        const listener = () => this.onSlice();
        element.addEventListener(window.cornerstone.Enums.Events.CAMERA_MODIFIED, listener);
        this._listened.set(element, listener);
      }
      if (fresh.length) {
        this._spreadPlanes(viewports);
      }
    }

    _spreadPlanes(viewports) {
      const [first, ...others] = viewports.filter(({ id }) => sliceprop.VIEWPORTS.includes(id));
      if (!first || first.id !== sliceprop.VIEWPORTS[0]) {
        return;
      }
      const along = name => Math.abs(dot(PLANES[name], first.getCamera().viewPlaneNormal));
      const [, ...free] = Object.keys(PLANES).sort((a, b) => along(b) - along(a));
      others.forEach((viewport, position) => {
        const wanted = free[position];
        if (wanted && Math.abs(dot(viewport.getCamera().viewPlaneNormal, PLANES[wanted])) < PARALLEL) {
          viewport.setOrientation(wanted);
          viewport.render();
        }
      });
    }

    /** The viewport in which slices along `direction` are painted: the active one if it shows them. */
    sliceViewport(viewports, direction) {
      const facing = viewports.filter(
        viewport => Math.abs(dot(viewport.getCamera().viewPlaneNormal, direction)) > PARALLEL,
      );
      const { activeViewportId } = this._services.viewportGridService.getState();
      return facing.find(viewport => viewport.id === activeViewportId) || facing[0] || null;
    }

    /** Whether the active viewport, which the last stroke was painted in, shows slices along `direction`. */
    facing(direction) {
      const { activeViewportId } = this._services.viewportGridService.getState();
      const viewport = this._volumeViewport(activeViewportId);
      return Boolean(viewport) && Math.abs(dot(viewport.getCamera().viewPlaneNormal, direction)) > PARALLEL;
    }

    /** Whether the viewer counts slices against `direction`; it counts along the normal of the view. */
    countsBackwards(viewport, direction) {
      return dot(viewport.getCamera().viewPlaneNormal, direction) < 0;
    }

    focus(viewport) {
      return [...viewport.getCamera().focalPoint];
    }

    /** Move the viewports that show slices along `direction` to the slice through a point. */
    jump(viewports, direction, point) {
      for (const viewport of viewports) {
        const { focalPoint, position, viewPlaneNormal } = viewport.getCamera();
        if (Math.abs(dot(viewPlaneNormal, direction)) > PARALLEL) {
          const distance = dot(viewPlaneNormal, point) - dot(viewPlaneNormal, focalPoint);
          const moved = from => from.map((value, axis) => value + distance * viewPlaneNormal[axis]);
          viewport.setCamera({ focalPoint: moved(focalPoint), position: moved(position) });
          viewport.render();
        }
      }
    }

    /** Scroll the slice viewport, as the mouse wheel does. */
    scroll(viewport, delta) {
      viewport.scroll(delta);
    }

    /** Give the left mouse button to a tool of `TOOLS`. */
    useTool(tool, radius, viewports) {
      const { name, strategy } = TOOLS[tool];
      for (const group of this._toolGroups(viewports)) {
        if (strategy && !group.hasTool(name)) {
          group.addToolInstance(name, 'Brush', { activeStrategy: strategy });
        }
        if (strategy) {
          drawLines(group.getToolInstance(name));
        }
        const current = group.getActivePrimaryMouseButtonTool();
        if (current && current !== name) {
          group.setToolPassive(current);
        }
        const { MouseBindings } = window.cornerstoneTools.Enums;
        group.setToolActive(name, { bindings: [{ mouseButton: MouseBindings.Primary }] });
        window.cornerstoneTools.utilities.segmentation.setBrushSizeForToolGroup(group.id, radius);
      }
      for (const { id } of viewports) {
        this._services.toolbarService.refreshToolbarState({ viewportId: id });
      }
    }

    /** Which of `TOOLS` has the left mouse button, null if another tool has. */
    tool(viewports) {
      const [group] = this._toolGroups(viewports);
      const active = group?.getActivePrimaryMouseButtonTool();
      return Object.keys(TOOLS).find(tool => TOOLS[tool].name === active) || null;
    }

    _toolGroups(viewports) {
      const groups = viewports.map(({ id }) => this._services.toolGroupService.getToolGroupForViewport(id));
      return [...new Set(groups.filter(Boolean))];
    }
  }

  Object.assign(sliceprop, { Viewer });
})();
