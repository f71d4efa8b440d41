import assert from 'node:assert/strict';
import { test } from 'node:test';
import { load } from './load.mjs';

const words = load(['words']);

test('times', () => {
  const said = [0.2, 8, 80, 120, 3599.6, 7500].map(words.duration);
  assert.deepEqual(said, ['0 s', '8 s', '1 min 20 s', '2 min', '1 h', '2 h 5 min']);
});

test('figures', () => {
  assert.equal(words.dice(0.926), '0.93');
  assert.equal(words.dice(null), '–');
  assert.equal(words.dice(NaN), '–');
  assert.equal(words.gain(0.0349), '+0.03');
  assert.equal(words.gain(0.004), 'less than 0.01');
});

test("the slices of a sentence get the viewer's numbers, other numbers stay", () => {
  const number = index => 14 - index;
  assert.equal(
    words.renumber(
      'It lies between the annotated slices 3 and 11, where disc is least certain (expected Dice 0.85 on this slice).',
      number,
    ),
    'It lies between the annotated slices 3 and 11, where disc is least certain (expected Dice 0.85 on this slice).',
  );
  assert.equal(
    words.renumber('It lies beyond the outermost annotated slice 2, where T12 is least certain.', number),
    'It lies beyond the outermost annotated slice 12, where T12 is least certain.',
  );
  assert.equal(
    words.renumber('Slices 1, 2 and 9 were empty; slices 4 and 5 too.', number),
    'Slices 1, 2 and 9 were empty; slices 9 and 10 too.',
  );
});

test('reasons become sentences', () => {
  assert.equal(words.asSentence('slices are missing'), 'Slices are missing.');
  assert.equal(words.asSentence('The server does not answer.'), 'The server does not answer.');
});

test('how a training goes', () => {
  assert.equal(words.trainingState({ status: 'SUBMITTED' }), 'Starting to train …');
  assert.match(words.trainingState({ status: 'RUNNING', epoch: 2, silent: true }), /does not answer/);
  const running = { status: 'RUNNING', epoch: 3, total_epochs: 40, seconds: 10, seconds_left: 30 };
  assert.equal(words.trainingState(running), 'Training, epoch 3 of 40: about 30 s left');
  assert.equal(words.trainingShare(running), 0.25);
  assert.equal(words.trainingShare({ status: 'SUBMITTED' }), 0);
});

test('uncertainty: low stays clear, high is the last level', () => {
  const levels = [...words.uncertaintyLevels(Uint8Array.of(0, 30, 60, 150, 255))];
  assert.deepEqual(levels.slice(0, 2), [0, 0]);
  assert.equal(levels[4], words.LEVELS);
  assert.ok(levels[2] >= 1 && levels[2] < levels[3]);
  assert.notDeepEqual(words.levelColor(1), words.levelColor(words.LEVELS));
});

test('colours', () => {
  assert.deepEqual(words.rgba('#5acce6'), [90, 204, 230, 255]);
  const first = words.freshColor([]);
  assert.notEqual(words.freshColor([first]), first);
  assert.match(words.freshColor(Array.from({ length: 40 }, (_, n) => `#0000${n + 10}`)), /^#[0-9a-f]{6}$/);
});

test('names', () => {
  assert.equal(words.nameProblem('liver', ['spleen']), null);
  assert.match(words.nameProblem('  ', []), /needs a name/);
  assert.match(words.nameProblem(' Liver ', ['liver']), /already/);
  assert.match(words.nameProblem('background', []), /no label/);
});
