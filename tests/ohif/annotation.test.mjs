import assert from 'node:assert/strict';
import { test } from 'node:test';
import { load } from './load.mjs';

const { Annotation, Strokes } = load(['annotation']);

/** An annotation after the server has taken everything. */
function submit(annotation) {
  const submission = annotation.begin();
  annotation.submitted(submission);
  return submission.annotated;
}

test('a painted slice counts until that is taken back', () => {
  const annotation = new Annotation([2]);
  annotation.paint(9);
  annotation.paint(4);
  assert.deepEqual(annotation.complete, [2, 4, 9]);
  assert.deepEqual(annotation.unsaved, [4, 9]);
  annotation.setComplete(4, false);
  annotation.paint(4);
  assert.deepEqual(annotation.complete, [2, 9]);
  assert.deepEqual(annotation.unfinished, [4]);
  assert.deepEqual(annotation.own, [2, 4, 9]);
});

test('a slice without paint counts once the user says so', () => {
  const annotation = new Annotation();
  annotation.setComplete(5, true);
  assert.deepEqual(annotation.unsaved, [5]);
  assert.deepEqual(submit(annotation), [5]);
  assert.deepEqual(annotation.unsaved, []);
});

test('an unfinished slice stays a draft, and off the server', () => {
  const annotation = new Annotation();
  annotation.paint(3);
  annotation.paint(6);
  annotation.setComplete(3, false);
  assert.deepEqual(submit(annotation), [6]);
  assert.deepEqual(annotation.unsaved, []);
  assert.deepEqual(annotation.draft, [3]);
});

test('taking back a slice that the server has is a change', () => {
  const annotation = new Annotation([3, 6]);
  annotation.setComplete(3, false);
  assert.deepEqual(annotation.unsaved, [3]);
  assert.deepEqual(submit(annotation), [6]);
  assert.equal(annotation.isOnServer(3), false);
});

test('what is painted during a submission belongs to the next one', () => {
  const annotation = new Annotation();
  annotation.paint(1);
  annotation.paint(2);
  const submission = annotation.begin();
  annotation.paint(2);
  annotation.submitted(submission);
  assert.deepEqual(annotation.unsaved, [2]);
});

test('what a submission has under way is only in the browser until it is answered', () => {
  const annotation = new Annotation([8]);
  annotation.paint(8);
  const first = annotation.begin();
  assert.deepEqual(annotation.draft, [8]);
  annotation.failed(first);
  const second = annotation.begin();
  annotation.submitted(second);
  assert.deepEqual(annotation.draft, []);
});

test('a failed submission leaves everything unsaved', () => {
  const annotation = new Annotation([8]);
  annotation.paint(1);
  annotation.paint(8);
  annotation.failed(annotation.begin());
  assert.deepEqual(annotation.unsaved, [1, 8]);
});

test("somebody else's slices come in, one's own stay", () => {
  const annotation = new Annotation([1, 2, 3, 4]);
  annotation.paint(2);
  annotation.setComplete(3, false);
  annotation.paint(9);
  const taken = annotation.merge([2, 3, 4, 7]);
  assert.deepEqual(taken, [4, 7]); // 2 and 3 were touched here, 1 is theirs no more
  assert.deepEqual(annotation.complete, [2, 4, 7, 9]);
  assert.deepEqual(annotation.unsaved, [2, 3, 9]);
});

test('a stroke that is taken back leaves no trace', () => {
  const annotation = new Annotation([5]);
  const before = annotation.state(2);
  annotation.paint(2);
  annotation.restore(2, before);
  assert.deepEqual(annotation.own, [5]);
  annotation.paint(5);
  annotation.forget(5);
  assert.deepEqual(annotation.unsaved, []);
  assert.deepEqual(annotation.complete, [5]);
});

test('only the last strokes are kept', () => {
  const strokes = new Strokes(2);
  [1, 2, 3].forEach(slice => strokes.push({ slice }));
  assert.equal(strokes.length, 2);
  assert.deepEqual([strokes.pop(), strokes.pop(), strokes.pop()], [{ slice: 3 }, { slice: 2 }, undefined]);
});

test('a stroke that is taken back while the server gets it is to be sent', () => {
  const annotation = new Annotation([1]);
  const before = annotation.state(1);
  annotation.paint(1);
  const submission = annotation.begin();
  assert.equal(annotation.sending, true);
  annotation.restore(1, before);
  annotation.submitted(submission);
  assert.deepEqual([annotation.sending, annotation.unsaved], [false, [1]]);
});
