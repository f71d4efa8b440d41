/** What the panel shows, as plain values: the `View` builds anew what differs from the model before. */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const known = value => (typeof value === 'number' && Number.isFinite(value) ? value : null);

  /**
   * The model of a panel.
   *
   * @param {object} state `session`, null while none is open; `notices`; `message`, shown without a session; `busy`,
   *   what is being done; `tool`, `marking`, `radius`, `label` of the brush; `training`, null without one
   */
  function panelModel(state) {
    const notices = state.notices.map(({ id, kind, text, action }) => ({ id, kind, text, action }));
    const { session, busy } = state;
    if (!session) {
      return { ready: false, message: state.message, notices, busy };
    }
    const { annotation, study } = session;
    const slice = session.slice;
    const annotated = annotation.complete.length > 0;
    return {
      ready: true,
      notices,
      busy,
      labels: labelsModel(state, slice),
      paint: paintModel(state),
      slice: sliceModel(state, slice),
      propagation: {
        busy: Boolean(busy),
        training: trainingModel(state),
        model: Boolean(study.model),
        trainable: annotated || study.scribbles || session.scribblesChanged,
        result: Boolean(study.result),
        uncertainty: { on: session.uncertainty.on, available: Boolean(study.result?.uncertainty) },
        undo: Boolean(study.undo),
      },
      suggestion: suggestionModel(session),
      slices: slicesModel(session, slice),
      final: { busy: Boolean(busy), possible: annotated || Boolean(study.result), seg: Boolean(study.dicom_seg) },
    };
  }

  function labelsModel({ session, label, busy }, slice) {
    const { result, fixed_labels: fixed } = session.study;
    const entries = session.labels.map(({ segment, name, color }) => ({
      segment,
      name,
      color,
      active: segment === label,
      quality: known(result?.quality?.[name]),
      here: known(result?.quality_slices?.[name]?.[slice]),
    }));
    return { entries, fixed: Boolean(fixed), shown: session.labelsShown, busy: Boolean(busy) };
  }

  function paintModel({ session, tool, radius, marking, label }) {
    return { tool, radius, marking, strokes: session.strokes.length > 0, enabled: label !== null };
  }

  function sliceModel({ session, busy }, slice) {
    const { annotation } = session;
    return {
      number: slice === null ? null : session.number(slice),
      total: session.total,
      complete: annotation.isComplete(slice),
      unfinished: annotation.isUnfinished(slice),
      unsaved: annotation.unsaved.length,
      scribbles: session.scribblesChanged,
      busy: Boolean(busy),
    };
  }

  function trainingModel({ session, training }) {
    if (!training) {
      return null;
    }
    const own = training.image === session.image;
    const text = sliceprop.trainingState(training);
    return {
      status: training.status,
      own,
      share: sliceprop.trainingShare(training),
      text: own ? text : `Another study: ${text}`,
    };
  }

  function suggestionModel(session) {
    const { suggestion } = session;
    if (!suggestion) {
      return null;
    }
    const number = index => session.number(index);
    return {
      number: suggestion.slice === null ? null : number(suggestion.slice),
      reason: sliceprop.renumber(suggestion.reason, number),
      gain: known(suggestion.expected_gain),
      before: known(suggestion.expected_dice),
      after: known(suggestion.expected_dice_after),
      stop: Boolean(suggestion.stop),
    };
  }

  function slicesModel(session, current) {
    const { annotation } = session;
    const listed = [...annotation.complete, ...annotation.unfinished].map(index => ({
      index,
      number: session.number(index),
      current: index === current,
      unfinished: annotation.isUnfinished(index),
      unsaved: annotation.isUnsaved(index),
    }));
    return listed.sort((a, b) => a.number - b.number);
  }

  Object.assign(sliceprop, { panelModel });
})();
