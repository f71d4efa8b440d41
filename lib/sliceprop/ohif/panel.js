/** What happens when: the panel between the viewer, the server and the user. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const PROGRESS_MS = 1000;
  const DRAFT_MS = 400;
  const SUCCESS_MS = 8000;
  const RADIUS = { smallest: 0.5, largest: 40, step: 1 };
  const PARTIAL =
    'On some slices only single labels were drawn, in another program. So of every slice just its labels count; ' +
    'where there is none, say so with background scribbles.';
  const MAX_LABELS = 253; // 254 is background in scribbles, 255 is the viewer's

  const pause = milliseconds => new Promise(resolve => window.setTimeout(resolve, milliseconds));

  class Panel {
    /** @param {object} services OHIF's */
    constructor(services) {
      this._viewer = new sliceprop.Viewer(services);
      this._client = new sliceprop.Client();
      this._drafts = new sliceprop.Drafts();
      this._view = new sliceprop.View(this);
      this._session = null;
      this._message = { text: 'Waiting for the series …' };
      this._notices = [];
      this._noticeId = 0;
      this._busy = null;
      this._training = null;
      this._tool = 'look'; // or brush, eraser, scribble; null for a tool that is not ours
      this._mark = 'label';
      this._label = null;
      this._radius = 5;
      this._onKey = event => this._key(event);
      this._onLeave = event => this._leave(event);
    }

    start() {
      Object.assign(this._viewer, {
        onLayout: () => this._later('layout', () => this._lookAtLayout()),
        onStroke: layer => this._stroke(layer),
        onSlice: () => this._later('slice', () => this._update()),
        onTool: () => this._later('tool', () => this._toolChanged()),
      });
      this._viewer.start();
      document.addEventListener('keydown', this._onKey);
      window.addEventListener('beforeunload', this._onLeave);
      this._meetOtherTabs();
      this._update();
    }

    stop() {
      this._stopped = true;
      this._saveDraft();
      this._viewer.stop();
      this._tabs?.close();
      document.removeEventListener('keydown', this._onKey);
      window.removeEventListener('beforeunload', this._onLeave);
      this._view.root.remove();
    }

    /**
     * OHIF shows the panel in `node`, or hides it: null.
     *
     * Until it is shown for the first time it leaves the viewer alone: other panels work with the first segmentation.
     */
    mount(node) {
      if (node) {
        node.append(this._view.root);
        this._wanted = true;
        this._later('layout', () => this._lookAtLayout());
      } else {
        this._view.root.remove();
      }
    }

    /** Do something once the browser has time, however often it is asked for until then. */
    _later(what, act) {
      this._waiting ||= new Set();
      if (!this._waiting.has(what)) {
        this._waiting.add(what);
        window.setTimeout(() => {
          this._waiting.delete(what);
          this._stopped || act();
        }, 30);
      }
    }

    // Series ------------------------------------------------------------------------------------------------------

    async _lookAtLayout() {
      try {
        await this._follow();
      } catch (error) {
        console.warn('LabelProp: the viewer changed meanwhile', error); // the next change of its layout mends this
      }
      this._update();
    }

    async _follow() {
      const series = this._wanted && this._viewer.series();
      if (!series) {
        await this._followNone();
        return;
      }
      if (series.viewports.length) {
        await (series.image === this._session?.image ? this._session.attach(series.viewports) : this._open(series));
      } else if (series.image !== this._session?.image) {
        this._close();
        this._message = series.reconstructable
          ? { text: 'Slices are annotated in a volume view.', action: { label: 'Show as volume', run: 'showAsVolume' } }
          : { text: await this._whyNoVolume(series.image) };
      }
    }

    /** Nothing is shown: yet, or because there is no volume. */
    async _followNone() {
      const image = this._wanted && !this._session && this._viewer.leftOut();
      if (image) {
        this._message = { text: `${await this._whyNoVolume(image)} OHIF’s other modes show it.` };
      }
    }

    /** Why a series cannot be annotated that the viewer does not take for a volume, as the server says it. */
    async _whyNoVolume(image) {
      this._reasons ||= new Map();
      if (!this._reasons.has(image)) {
        const refusal = await this._client.study(image).catch(error => error);
        if (refusal instanceof Error && refusal.status !== 400) {
          return this._sentence(refusal);
        }
        const reason = refusal instanceof Error ? refusal.message : 'the viewer cannot show it as one';
        this._reasons.set(image, `This series is not a volume that can be annotated: ${reason}.`);
      }
      return this._reasons.get(image);
    }

    async _open(series) {
      if (this._opening === series.image) {
        return;
      }
      this._close();
      this._opening = series.image;
      this._message = { text: 'Loading the annotation …' };
      this._update();
      let session = null;
      try {
        const study = await this._client.study(series.image);
        const now = this._viewer.series();
        if (this._stopped || this._opening !== series.image || !now?.viewports.length) {
          return;
        }
        session = new sliceprop.Session(this._viewer, this._client, now, study);
        await session.load();
        await this._restoreDraft(session);
        this._begin(session);
      } catch (error) {
        session?.remove();
        this._message = { text: this._sentence(error), action: { label: 'Try again', run: 'reopen' } };
      } finally {
        if (this._opening === series.image) {
          this._opening = null;
        }
        this._update();
      }
    }

    _begin(session) {
      this._session = session;
      this._label = session.labels[0]?.segment ?? null;
      this._tabs?.postMessage({ opened: session.image });
      this._activate();
      this._followTraining();
    }

    _close() {
      this._saveDraft();
      this._session?.remove();
      this._session = null;
      this._training = null;
      this._notices = [];
    }

    reopen() {
      this._lookAtLayout();
    }

    showAsVolume() {
      this._viewer.showAsVolume();
    }

    // Drafts and other tabs ---------------------------------------------------------------------------------------

    /** Put back what fits; what does not waits in the browser, and that is told. */
    async _restoreDraft(session) {
      const found = await this._drafts.load(session.image);
      const fits = session.restoreDrafts([...found.values()]);
      const waiting = [...found.values()].filter(one => !fits.includes(one));
      session.kept = new Map([...found].filter(([, one]) => fits.includes(one)));
      const draft = session.draft();
      this._drafts.save(session.image, draft, session.kept);
      if (draft) {
        this._notify('info', 'What you had painted and not submitted was restored.');
      }
      if (waiting.length) {
        this._notify('warning', sliceprop.waitingDrafts(waiting, session.grid.shape));
      }
    }

    _saveDraft(session = this._session) {
      session && this._drafts.save(session.image, session.draft(), session.kept);
    }

    _painted() {
      this._session.labelsShown || this._session.showLabels(true); // nobody paints what cannot be seen
      this._changed();
    }

    _changed() {
      window.clearTimeout(this._draftTimer);
      this._draftTimer = window.setTimeout(() => this._saveDraft(), DRAFT_MS);
      this._update();
    }

    _leave(event) {
      this._saveDraft();
      if (this._session?.unsaved) {
        event.preventDefault();
      }
    }

    _meetOtherTabs() {
      const name = `labelprop-${sliceprop.serverRoot(window.location.pathname)}`;
      this._tabs = window.BroadcastChannel ? new BroadcastChannel(name) : null;
      this._tabs?.addEventListener('message', ({ data: { labels, opened, answer } }) => {
        if (labels) {
          this._session?.reloadLabels().then(() => this._update(), console.warn);
        }
        if (!opened || opened !== this._session?.image) {
          return;
        }
        if (!answer) {
          this._tabs.postMessage({ opened, answer: true });
        }
        this._notify(
          'warning',
          'This series is open in another tab too. What both submit is kept; on the same slice the last one counts.',
        );
      });
    }

    // Notices -----------------------------------------------------------------------------------------------------

    _sentence(error) {
      if (error instanceof sliceprop.Problem) {
        return sliceprop.asSentence(error.message);
      }
      console.error(error);
      return `Something went wrong in the viewer: ${error.message}`;
    }

    /** Show a message; an equal one, and errors that are over, go. */
    _notify(kind, text, action = null, run = null) {
      const id = ++this._noticeId;
      this._notices = [...this._notices.filter(notice => notice.text !== text), { id, kind, text, action, run }].slice(
        -3,
      );
      if (kind === 'success') {
        window.setTimeout(() => this.dismiss(id), SUCCESS_MS);
      }
      this._update();
    }

    dismiss(id) {
      this._notices = this._notices.filter(notice => notice.id !== id);
      this._update();
    }

    act(id) {
      const notice = this._notices.find(one => one.id === id);
      this.dismiss(id);
      notice?.run?.();
    }

    /**
     * Run a request of the user; one at a time. Painting goes on meanwhile.
     *
     * @param {string} doing what it is, for the screen reader
     * @param {(session: object) => Promise<void>} request
     * @returns {Promise<boolean>} whether it went well
     */
    async _request(doing, request) {
      const session = this._session;
      if (!session || this._busy) {
        return false;
      }
      this._busy = doing;
      this._notices = this._notices.filter(({ kind }) => kind !== 'error');
      this._update();
      const run = async () => {
        try {
          await request(session);
          return true;
        } catch (error) {
          if (session === this._session) {
            this._notify('error', this._sentence(error), 'Try again', () => this._request(doing, request));
          }
          return false;
        } finally {
          this._busy = null;
          this._saveDraft(session); // another one may be shown by now
          this._changed();
        }
      };
      this._running = run();
      return this._running;
    }

    // Labels ------------------------------------------------------------------------------------------------------

    chooseLabel(segment) {
      this._label = segment;
      this._mark = 'label';
      if (this._tool === 'look' || !this._tool) {
        this._tool = 'brush';
      }
      this._activate();
    }

    async addLabel(name) {
      const labels = this._session?.labels || [];
      const problem =
        sliceprop.nameProblem(
          name,
          labels.map(label => label.name),
        ) || (labels.length >= MAX_LABELS ? `The viewer shows at most ${MAX_LABELS} labels.` : null);
      if (problem) {
        this._notify('warning', problem);
        return false;
      }
      const color = sliceprop.freshColor(labels.map(label => label.color));
      return this._saveLabels({ name: name.trim(), color }, session => {
        this.chooseLabel(session.study.label_names[name.trim()]);
      });
    }

    async renameLabel(segment, name) {
      const { labels } = this._session;
      const label = labels.find(one => one.segment === segment);
      const problem = sliceprop.nameProblem(
        name,
        labels.filter(one => one !== label).map(one => one.name),
      );
      if (problem) {
        this._notify('warning', problem);
        return false;
      }
      return this._saveLabels({ name: name.trim(), color: label.color, renamed_from: label.name });
    }

    recolour(segment, color) {
      const label = this._session.labels.find(one => one.segment === segment);
      return this._saveLabels({ name: label.name, color });
    }

    async _saveLabels(label, then = () => {}) {
      await this._running;
      return this._request('Saving the label', async session => {
        session.takeLabels(await this._client.saveLabels(session.image, [label]));
        this._tabs?.postMessage({ labels: true });
        then(session);
      });
    }

    // Painting ----------------------------------------------------------------------------------------------------

    useTool(tool) {
      this._tool = tool;
      this._mark = 'label';
      this._activate();
    }

    mark(what) {
      this._tool = 'scribble';
      this._mark = what;
      this._activate();
    }

    setRadius(radius) {
      this._radius = Math.min(RADIUS.largest, Math.max(RADIUS.smallest, radius));
      if (this._tool !== 'look') {
        this._activate();
      }
      this._update();
    }

    toggleLabels() {
      this._session?.showLabels(!this._session.labelsShown);
      this._update();
    }

    /** Make the viewer paint what the panel says. */
    _activate() {
      const session = this._session;
      if (!session) {
        return;
      }
      const scribbling = this._tool === 'scribble';
      const layer = scribbling ? session.scribbles : session.layer;
      const segment = scribbling && this._mark === 'background' ? sliceprop.BACKGROUND : this._label;
      if (segment !== null) {
        layer.activate(segment, session.viewports);
      }
      const tool = scribbling ? (this._mark === 'erase' ? 'eraser' : 'brush') : this._tool;
      if (tool) {
        this._viewer.useTool(tool, this._radius, session.viewports);
      }
      this._update();
    }

    /** Another tool was chosen in OHIF's toolbar: ours is not active any more. */
    _toolChanged() {
      if (!this._session) {
        return;
      }
      const active = this._viewer.tool(this._session.viewports);
      const scribbling = this._tool === 'scribble' && ['brush', 'eraser'].includes(active);
      if (!scribbling) {
        this._tool = active;
      }
      this._update();
    }

    _stroke(layerId) {
      const session = this._session;
      if (layerId === session?.scribbles.id) {
        session.scribble() && this._painted();
      } else if (layerId === session?.layer.id) {
        const kind = session.stroke(this._viewer.facing(session.direction));
        if (kind === 'scribbles') {
          this._notify('info', 'Painted across slices: kept as scribbles, so that no slice counts as complete by it.');
        }
        if (kind !== 'none') {
          this._forgetSuggestion();
          this._painted();
        }
      }
    }

    undoStroke() {
      const slice = this._session?.undoStroke() ?? null;
      if (slice !== null) {
        this._session.goTo(slice);
        this._changed();
      }
    }

    toggleComplete() {
      const { _session: session } = this;
      const slice = session?.slice ?? null;
      if (slice !== null) {
        session.annotation.setComplete(slice, !session.annotation.isComplete(slice));
        this._forgetSuggestion();
        this._changed();
      }
    }

    /** A suggestion is over once its slice is the user's. */
    _forgetSuggestion() {
      const { annotation, suggestion } = this._session;
      if (suggestion && annotation.own.includes(suggestion.slice)) {
        this._session.suggestion = null;
      }
    }

    // Server ------------------------------------------------------------------------------------------------------

    async submit() {
      if (this._session && !this._session.unsaved) {
        this._notify('info', 'There is nothing to submit: the server has everything that was painted.');
        return false;
      }
      return this._request('Submitting', async session => {
        await this._submitAll(session);
        const count = session.annotation.complete.length;
        this._notify('success', `Submitted: ${count} annotated ${count === 1 ? 'slice' : 'slices'}.`);
        if (session.study.partial) {
          this._notify('info', PARTIAL);
        }
      });
    }

    async _submitAll(session) {
      const { merged } = await session.submit();
      if (merged) {
        this._notify(
          'info',
          'Somebody else had submitted meanwhile: their slices were taken over, yours kept; scribbles too.',
        );
      }
    }

    /** Whether there is something to learn from; says what to do first if not. */
    _annotated() {
      const annotated = sliceprop.panelModel(this._state()).propagation?.trainable;
      if (this._session && !annotated) {
        this._notify('warning', 'Nothing is annotated yet: add a label, choose it, and paint it on a slice.');
      }
      return annotated;
    }

    async train() {
      if (!this._annotated()) {
        return false;
      }
      return this._request('Starting to train', async session => {
        await this._submitAll(session);
        await this._client.train(session.image);
        this._training = { status: 'SUBMITTED', image: session.image };
        this._followTraining();
      });
    }

    async cancelTraining() {
      try {
        await this._client.cancelTraining(this._session.image);
      } catch (error) {
        this._notify('error', this._sentence(error), 'Try again', () => this.cancelTraining());
      }
    }

    /** Show how far a training is until it ends, whoever started it. */
    async _followTraining() {
      if (this._following) {
        return;
      }
      this._following = true;
      let followed = Boolean(this._training);
      for (
        let session = this._session;
        session && session === this._session && !this._stopped;
        await pause(PROGRESS_MS)
      ) {
        const state = await this._client.progress(session.image).catch(() => null);
        if (session !== this._session) {
          break;
        }
        if (state && !['SUBMITTED', 'RUNNING'].includes(state.status)) {
          this._training = null;
          if (followed && state.image === session.image) {
            this._trainingEnded(session, state);
          }
          break;
        }
        this._training = state || (this._training && { ...this._training, silent: true });
        followed ||= Boolean(state);
        this._update();
      }
      this._following = false;
      this._update();
    }

    async _trainingEnded(session, { status, error }) {
      if (status === 'ERROR') {
        this._notify('error', `Training failed: ${error || 'the server’s log says why.'}`, 'Try again', () =>
          this.train(),
        );
        return;
      }
      try {
        session.study.model = (await this._client.study(session.image)).model;
      } catch (problem) {
        this._notify('error', this._sentence(problem));
      }
      const how =
        status === 'DONE'
          ? 'Trained.'
          : session.study.model
            ? 'Training was stopped; the best model so far is kept.'
            : 'Training was stopped before anything was learnt.';
      this._notify('success', how, session.study.model ? 'Propagate' : null, () => this.propagate());
    }

    async propagate() {
      if (!this._annotated()) {
        return false;
      }
      return this._request('Propagating', async session => {
        await this._submitAll(session);
        await this._client.propagate(session.image);
        await session.reload();
        this._activate();
      });
    }

    undoPropagation() {
      return this._request('Undoing the propagation', async session => {
        const { sentence } = await this._client.undoPropagation(session.image);
        await session.reload();
        this._notify('success', sentence || 'The result before is back.');
      });
    }

    toggleUncertainty() {
      return this._request('Loading the uncertainty', async session => {
        await session.showUncertainty(!session.uncertainty.on);
        this._activate();
      });
    }

    async goToSuggestion() {
      const session = this._session;
      if (session && !session.suggestion) {
        await this._request('Asking for the next slice', async () => {
          await this._submitAll(session);
          await session.suggest();
        });
      }
      const slice = session?.suggestion?.slice ?? null;
      if (slice !== null) {
        session.goTo(slice);
        this._update();
      }
    }

    saveFinal() {
      return this._request('Saving', async session => {
        await this._submitAll(session);
        const { dicom_seg: seg, sentence } = await this._client.saveFinal(session.image);
        this._notify(seg || !session.study.dicom_seg ? 'success' : 'warning', sentence);
      });
    }

    // Moving about ------------------------------------------------------------------------------------------------

    goTo(slice) {
      this._session.goTo(slice);
      this._update();
    }

    step(delta) {
      const viewport = this._session?.sliceViewport;
      viewport && this._viewer.scroll(viewport, delta);
    }

    _key(event) {
      const typing = event.target.closest?.('input:not([type=range]), textarea, select, [contenteditable]');
      if (typing || !this._session || event.altKey || !this._view.root.isConnected) {
        return;
      }
      const { key, ctrlKey, metaKey } = event;
      const act = ctrlKey || metaKey ? this._commands()[`Ctrl+${key}`] : this._commands()[key.toLowerCase()];
      if (act) {
        event.preventDefault();
        event.stopPropagation();
        act();
      }
    }

    _commands() {
      const ready = this._label !== null;
      return {
        n: () => this.useTool('look'),
        b: () => ready && this.useTool('brush'),
        e: () => ready && this.useTool('eraser'),
        s: () => ready && this.useTool('scribble'),
        x: () => ready && this.mark('background'),
        '[': () => this.setRadius(this._radius - RADIUS.step),
        ']': () => this.setRadius(this._radius + RADIUS.step),
        d: () => this.toggleComplete(),
        g: () => this.goToSuggestion(),
        u: () => this.toggleUncertainty(),
        h: () => this.toggleLabels(),
        t: () => this._training || this.train(),
        p: () => this.propagate(),
        'Ctrl+z': () => this.undoStroke(),
        'Ctrl+Enter': () => this.submit(),
      };
    }

    _update() {
      this._later('update', () => this._view.show(sliceprop.panelModel(this._state())));
    }

    _state() {
      return {
        session: this._session,
        notices: this._notices,
        message: this._message,
        busy: this._busy || this._opening,
        tool: this._tool,
        marking: this._mark,
        radius: this._radius,
        label: this._label,
        training: this._training,
      };
    }
  }

  Object.assign(sliceprop, { Panel });
})();
