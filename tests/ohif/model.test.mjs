import assert from 'node:assert/strict';
import { test } from 'node:test';
import { load } from './load.mjs';

const { Annotation, Strokes, panelModel } = load(['annotation', 'model', 'words']);

const RESULT = {
  uncertainty: true,
  quality: { disc: 0.91, core: null },
  quality_slices: { disc: { 3: 0.8 } },
};
const SUGGESTION = {
  slice: 5,
  reason: 'It lies between the annotated slices 2 and 8, where disc is least certain.',
  expected_dice: 0.9,
  expected_dice_after: 0.92,
  expected_gain: 0.02,
  stop: false,
};

/** A panel's state; the viewer counts ten slices from the other end and shows slice 3. */
function state(changes = {}, study = {}) {
  const session = {
    image: '1.2',
    annotation: new Annotation([2, 8]),
    strokes: new Strokes(),
    labels: [
      { segment: 1, name: 'disc', color: '#ff0000' },
      { segment: 2, name: 'core', color: '#00ff00' },
    ],
    study: { model: false, scribbles: false, undo: false, result: null, ...study },
    suggestion: null,
    uncertainty: { on: false },
    labelsShown: true,
    scribblesChanged: false,
    slice: 3,
    total: 10,
    number: slice => 10 - slice,
    ...changes.session,
  };
  const rest = {
    notices: [],
    message: null,
    busy: null,
    tool: 'look',
    marking: 'label',
    radius: 5,
    label: 1,
    training: null,
  };
  return { ...rest, ...changes, session };
}

test('without a series there is only a message', () => {
  const message = { text: 'Loading' };
  const model = panelModel({ ...state(), session: null, message, busy: 'opening' });
  assert.deepEqual(model, { ready: false, message, notices: [], busy: 'opening' });
});

test('labels have the quality of the result, of the slice too, where it is known', () => {
  const [disc, core] = panelModel(state({}, { result: RESULT })).labels.entries;
  assert.deepEqual([disc.quality, disc.here, disc.active], [0.91, 0.8, true]);
  assert.deepEqual([core.quality, core.here, core.active], [null, null, false]);
});

test('a suggestion speaks of slices as the viewer counts them', () => {
  const { suggestion } = panelModel(state({ session: { suggestion: SUGGESTION } }));
  assert.equal(suggestion.number, 5);
  assert.match(suggestion.reason, /slices 2 and 8,/);
  const end = { slice: null, reason: 'Every slice is annotated.', expected_gain: 0, expected_dice: NaN, stop: true };
  const done = panelModel(state({ session: { suggestion: end } })).suggestion;
  assert.deepEqual([done.number, done.stop, done.before], [null, true, null]);
});

test('the annotated slices are listed in the order of the viewer, with their state', () => {
  const annotation = new Annotation([2, 8]);
  annotation.paint(3);
  annotation.setComplete(3, false);
  const model = panelModel(state({ session: { annotation } }));
  assert.deepEqual(
    model.slices.map(({ number }) => number),
    [2, 7, 8],
  );
  assert.deepEqual(model.slices[1], { index: 3, number: 7, current: true, unfinished: true, unsaved: false });
  assert.deepEqual([model.slice.number, model.slice.unfinished, model.slice.unsaved], [7, true, 0]);
});

test('nothing can be propagated from nothing', () => {
  const empty = new Annotation();
  assert.equal(panelModel(state({ session: { annotation: empty } })).propagation.trainable, false);
  assert.equal(panelModel(state({ session: { annotation: empty } })).final.possible, false);
  assert.equal(
    panelModel(state({ session: { annotation: empty, scribblesChanged: true } })).propagation.trainable,
    true,
  );
  assert.equal(panelModel(state()).propagation.trainable, true);
});

test('a training of another study is told apart', () => {
  const training = { status: 'RUNNING', image: '9.9', epoch: 2, total_epochs: 4, seconds: 5, seconds_left: 5 };
  const model = panelModel(state({ training })).propagation.training;
  assert.deepEqual([model.own, model.share], [false, 0.5]);
  assert.match(model.text, /^Another study: Training/);
  assert.equal(panelModel(state({ training: { ...training, image: '1.2' } })).propagation.training.own, true);
});
