import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { load } from './load.mjs';
import { MemoryServer, MemoryViewer, SIZE } from './memory.mjs';

const { Problem, Session } = load(['annotation', 'client', 'grid', 'session', 'words']);

/** Offset of a voxel of the server. */
const at = (i, j, k) => i + 3 * (j + 2 * k);

let server;
let session;

async function open() {
  session = new Session(new MemoryViewer(), server, { image: '1.2', viewports: [{}] }, await server.study());
  await session.load();
  return session;
}

beforeEach(async () => {
  server = new MemoryServer();
  await open();
});

test("a stroke in the view of the slices makes its slice the user's", async () => {
  session.layer.paint(1, 0, 0, 2); // the viewer's first slice is the server's last
  assert.equal(session.stroke(true), 'slice');
  assert.deepEqual(session.annotation.complete, [5]);
  await session.submit();
  assert.deepEqual(server.annotated, [5]);
  assert.equal(server.labels[at(1, 0, 5)], 2);
  assert.equal(
    server.labels.reduce((sum, value) => sum + value, 0),
    2,
  );
});

test('what OHIF tells without a change is no stroke', () => {
  assert.equal(session.stroke(true), 'none');
  assert.equal(session.unsaved, false);
});

test('a stroke across slices becomes scribbles, its erasing background', async () => {
  server.take(new Uint8Array(SIZE).fill(1), [0]);
  await open();
  for (const k of [1, 2, 3]) {
    session.layer.paint(0, 0, k, 2);
    session.layer.paint(1, 0, k, 0);
  }
  assert.equal(session.stroke(true), 'scribbles');
  assert.deepEqual(session.annotation.complete, [0]);
  assert.deepEqual([...session.layer.read()], [...new Uint8Array(SIZE).fill(1)]);
  await session.submit();
  assert.deepEqual([server.marks[at(0, 0, 3)], server.marks[at(1, 0, 3)], server.marks[at(2, 0, 3)]], [2, 255, 0]);
});

test('a stroke in another plane that meets a single slice is a scribble too', () => {
  session.layer.paint(0, 0, 1, 2);
  assert.equal(session.stroke(false), 'scribbles');
  assert.deepEqual(session.annotation.own, []);
});

/** Draw a scribble where the server has this voxel, or erase it: 0. */
function scribble(one, [i, j, k], value) {
  one.scribbles.paint(i, j, 5 - k, value);
  assert.equal(one.scribble(), true);
}

/** A study with scribbles by two people, who both have it open. */
async function openTwice() {
  const marks = new Uint8Array(SIZE);
  marks[at(0, 0, 0)] = marks[at(0, 0, 5)] = 1;
  server.mark(marks);
  const first = await open();
  scribble(first, [1, 0, 2], 2);
  scribble(first, [0, 0, 5], 0);
  return [first, await open()];
}

const markedOnServer = () => [...server.marks.keys()].filter(voxel => server.marks[voxel]);

test("two people's scribbles both stay, and what one of them erased is erased", async () => {
  const [first, second] = await openTwice();
  scribble(second, [2, 1, 4], 254);
  assert.deepEqual(await first.submit(), { merged: false });
  assert.deepEqual(await second.submit(), { merged: true });
  assert.deepEqual(markedOnServer(), [at(0, 0, 0), at(1, 0, 2), at(2, 1, 4)]);
  assert.equal(server.marks[at(2, 1, 4)], 255);
  await first.reload();
  assert.deepEqual(first.marks, second.marks);
  assert.deepEqual([first.unsaved, second.unsaved, first.draft()], [false, false, null]);
  scribble(first, [2, 0, 0], 1);
  assert.deepEqual(await first.submit(), { merged: false });
});

test("somebody else's scribbles are taken over with their slices, under one's own", async () => {
  const [first, second] = await openTwice();
  second.layer.paint(0, 0, 1, 2);
  second.stroke(true);
  scribble(second, [1, 0, 2], 1);
  first.layer.paint(0, 0, 3, 2);
  first.stroke(true);
  await first.submit();
  assert.deepEqual(await second.submit(), { merged: true });
  assert.deepEqual([server.annotated, markedOnServer()], [[2, 4], [at(0, 0, 0), at(1, 0, 2)]]);
  assert.equal(server.marks[at(1, 0, 2)], 1);
});

test('scribbles whose answer was lost, or that are here twice, are sent once', async () => {
  const [first, second] = await openTwice();
  server.silent = true;
  await assert.rejects(first.submit(), /does not answer/);
  server.silent = false;
  assert.equal(first.unsaved, true);
  assert.deepEqual([await first.submit(), server.marksNumber], [{ merged: false }, 2]);
  scribble(second, [1, 0, 2], 2);
  scribble(second, [0, 0, 5], 0);
  assert.deepEqual([await second.submit(), server.marksNumber], [{ merged: false }, 2]);
  assert.equal(second.unsaved, false);
});

test('a network that breaks while scribbles are taken over loses none', async () => {
  const [first, second] = await openTwice();
  scribble(second, [2, 1, 4], 2);
  await first.submit();
  for (const what of ['study', 'voxels', 'saveScribbles']) {
    const before = { marks: second.marks, there: markedOnServer() };
    const works = server[what];
    let calls = 0;
    server[what] = async (...args) => {
      calls += 1;
      if (what !== 'saveScribbles' || calls > 1) {
        throw new Problem('The server does not answer.');
      }
      return works.apply(server, args);
    };
    await assert.rejects(second.submit(), /does not answer/, what);
    delete server[what];
    assert.deepEqual(markedOnServer(), before.there, what);
    assert.equal(second.unsaved, true, what);
    assert.deepEqual([...second.draft().scribbles.values], [2], what);
  }
  await second.submit();
  assert.deepEqual(markedOnServer(), [at(0, 0, 0), at(1, 0, 2), at(2, 1, 4)]);
});

test('what is drawn while scribbles are sent belongs to the next submission, and until then to the draft', async () => {
  scribble(session, [0, 0, 1], 1);
  const submitting = session.submit();
  assert.equal(session.draft().scribbles.at.length, 1);
  scribble(session, [0, 0, 2], 1);
  await submitting;
  assert.deepEqual([session.unsaved, markedOnServer()], [true, [at(0, 0, 1)]]);
  assert.deepEqual([...session.draft().scribbles.values], [1]);
  await session.submit();
  assert.deepEqual([session.unsaved, markedOnServer()], [false, [at(0, 0, 1), at(0, 0, 2)]]);
});

test('a draft of scribbles is laid over those that are there by now', async () => {
  const [first, second] = await openTwice();
  const draft = structuredClone(first.draft());
  scribble(second, [2, 1, 4], 2);
  await second.submit();
  await open();
  assert.equal(session.restoreDraft({ ...draft, axis: 0 }), true, 'scribbles have no direction');
  await session.submit();
  assert.deepEqual(markedOnServer(), [at(0, 0, 0), at(1, 0, 2), at(2, 1, 4)]);
  await open();
  session.restoreDraft(draft);
  assert.deepEqual([session.unsaved, session.draft()], [false, null], 'all of it is there');
});

test('scribbles keep the names of their labels when others have their numbers', async () => {
  const [first, second] = await openTwice();
  scribble(second, [2, 1, 4], 2);
  await first.submit();
  server.names = { disc: 1, vessel: 2, core: 3 };
  server.mark(server.marks.map(value => (value === 2 ? 3 : value)));
  assert.deepEqual(await second.submit(), { merged: true });
  assert.deepEqual([server.marks[at(1, 0, 2)], server.marks[at(2, 1, 4)]], [3, 3]);
});

test('a mark that somebody else erased does not come back since its label has another number by now', async () => {
  const marks = new Uint8Array(SIZE);
  marks[at(0, 0, 0)] = 2;
  server.mark(marks);
  await open();
  scribble(session, [2, 1, 4], 1);
  server.names = { disc: 1, vessel: 2, core: 3 };
  server.mark(new Uint8Array(SIZE));
  await session.submit();
  assert.deepEqual(markedOnServer(), [at(2, 1, 4)]);
});

test('slice numbers of another direction are not taken for those here', async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  scribble(session, [0, 0, 1], 1);
  server.take(new Uint8Array(SIZE).fill(1), [0, 2]);
  server.axis = 0;
  const [shown, draft] = [session.layer.read(), structuredClone(session.draft())];
  for (const request of ['submit', 'reload', 'suggest', 'submit']) {
    await assert.rejects(session[request](), /along another direction meanwhile, so nothing was sent/, request);
    assert.deepEqual([server.annotated, server.number, server.marksNumber], [[0, 2], 1, 0], request);
    assert.deepEqual([session.layer.read(), session.annotation.complete], [shown, [4]], request);
    assert.deepEqual(structuredClone(session.draft()), draft, request);
  }
  server.axis = 2;
  assert.deepEqual(await session.submit(), { merged: true });
  assert.deepEqual([server.annotated, markedOnServer()], [[0, 2, 4], [at(0, 0, 1)]]);
});

test('nor those of a series that has other slices by now', async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  server = Object.assign(new MemoryServer(8), { number: 1 });
  session.client = server;
  await assert.rejects(session.submit(), /has other slices by now/);
  assert.deepEqual([server.annotated, session.annotation.complete], [[], [4]]);
});

/** Label 1 was drawn on slices 0 and 3, everything else was propagated. */
async function openPartial() {
  server.labels.fill(2);
  const drawn = new Uint8Array(SIZE);
  drawn[at(0, 0, 0)] = drawn[at(0, 0, 3)] = 1;
  server.takePartial(drawn);
  return open();
}

const labelsOn = (values, slice) => [...values.subarray(6 * slice, 6 * slice + 6)];

test('of a slice on which some labels were drawn elsewhere, only those go back to the server', async () => {
  await openPartial();
  session.layer.paint(1, 0, 1, 1); // slice 4 of the server
  session.stroke(true);
  await session.submit();
  assert.deepEqual(server.annotated, [0, 3, 4]);
  assert.deepEqual(labelsOn(server.drawn, 0), [1, 0, 0, 0, 0, 0]);
  assert.deepEqual(labelsOn(server.drawn, 3), [1, 0, 0, 0, 0, 0]);
  assert.deepEqual(labelsOn(server.drawn, 4), [2, 1, 2, 2, 2, 2]);
  assert.equal(session.unsaved, false);
  session.layer.paint(2, 0, 1, 1);
  session.stroke(true);
  await session.submit();
  assert.deepEqual(labelsOn(server.drawn, 3), [1, 0, 0, 0, 0, 0]);
  assert.deepEqual(labelsOn(server.drawn, 4), [2, 1, 1, 2, 2, 2]);
});

test('a partly drawn slice that is painted counts as shown, one that is taken back not at all', async () => {
  await openPartial();
  session.layer.paint(1, 0, 2, 1); // slice 3 of the server
  session.stroke(true);
  session.annotation.setComplete(0, false);
  await session.submit();
  assert.deepEqual([server.annotated, server.drawn], [[3], null], 'no slice is partly drawn any more');
  assert.deepEqual(labelsOn(server.labels, 3), [1, 1, 2, 2, 2, 2]);
});

test('a slice without any label does not count beside partly drawn ones, and is not said to', async () => {
  await openPartial();
  for (const [i, j] of [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]) {
    session.layer.paint(i, j, 1, 0);
  }
  session.stroke(true);
  await session.submit();
  assert.deepEqual(server.annotated, [0, 3]);
  assert.deepEqual(session.annotation.complete, [0, 3]);
  assert.equal(session.unsaved, false);
});

test('what somebody else drew in part meanwhile is taken over as drawn', async () => {
  session.layer.paint(1, 0, 1, 1);
  session.stroke(true);
  server.labels.fill(2);
  const drawn = new Uint8Array(SIZE);
  drawn[at(0, 0, 3)] = 1;
  server.takePartial(drawn);
  assert.deepEqual(await session.submit(), { merged: true });
  assert.deepEqual(server.annotated, [3, 4]);
  assert.deepEqual(labelsOn(server.drawn, 3), [1, 0, 0, 0, 0, 0]);
  assert.deepEqual(labelsOn(session.grid.toServer(session.layer.read()), 3), [1, 2, 2, 2, 2, 2], 'shown as before');
});

test("a new result leaves the user's slices alone", async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  server.labels = new Uint8Array(SIZE).fill(1);
  await session.reload();
  const shown = session.grid.toServer(session.layer.read());
  assert.equal(shown[at(0, 0, 4)], 2);
  assert.equal(shown[at(1, 0, 4)], 0);
  assert.equal(shown[at(1, 0, 3)], 1);
});

test('only annotated slices are sent, with what was propagated on them', async () => {
  server.labels = new Uint8Array(SIZE).fill(1);
  await session.reload();
  session.layer.paint(0, 0, 3, 2);
  session.stroke(true);
  await session.submit();
  assert.deepEqual(server.annotated, [2]);
  assert.deepEqual([server.labels[at(0, 0, 2)], server.labels[at(1, 1, 2)], server.labels[at(0, 0, 1)]], [2, 1, 0]);
});

test('without an answer everything stays, and goes with the next try', async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  server.down = true;
  await assert.rejects(session.submit(), /does not answer/);
  assert.equal(session.unsaved, true);
  server.down = false;
  await session.submit();
  assert.equal(session.unsaved, false);
  assert.equal(server.labels[at(0, 0, 4)], 2);
});

test("somebody else's slices are taken over before one's own are sent", async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  const theirs = new Uint8Array(SIZE);
  theirs[at(2, 1, 0)] = 1;
  server.take(theirs, [0]);
  assert.deepEqual(await session.submit(), { merged: true });
  assert.deepEqual(server.annotated, [0, 4]);
  assert.deepEqual([server.labels[at(2, 1, 0)], server.labels[at(0, 0, 4)]], [1, 2]);
  assert.equal(session.grid.toServer(session.layer.read())[at(2, 1, 0)], 1);
});

test("a stroke on a slice that is somebody else's too by now cannot take theirs back", async () => {
  await paintCore();
  server.take(new Uint8Array(SIZE).fill(1), [4]);
  const { submit } = server;
  server.submit = async (...args) => {
    server.down = server.number === 1 && args[2].annotation_version === 'v1';
    return submit.apply(server, args);
  };
  await assert.rejects(session.submit(), /does not answer/);
  assert.equal(session.undoStroke(), null);
  assert.deepEqual([session.annotation.complete, session.annotation.unsaved], [[4], [4]]);
});

test('a submission whose answer was lost is nobody else’s', async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  server.silent = true;
  await assert.rejects(session.submit(), /does not answer/);
  server.silent = false;
  assert.deepEqual(await session.submit(), { merged: false });
  assert.deepEqual([server.annotated, server.labels[at(0, 0, 4)]], [[4], 2]);
  assert.equal(session.unsaved, false);
});

test('a label that somebody else renamed has its new name after a submission', async () => {
  server.names = { nucleus: 1, core: 2 };
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  await session.submit();
  assert.deepEqual(
    session.labels.map(({ name }) => name),
    ['nucleus', 'core'],
  );
});

/** What the label of a voxel of the server was called by who submitted it. */
const nameAt = (i, j, k) => server.told[server.labels[at(i, j, k)]];

async function paintCore() {
  session.layer.paint(0, 0, 1, 2); // slice 4 of the server
  session.stroke(true);
}

test('a draft keeps the names of its labels, whatever has their numbers now', async () => {
  await paintCore();
  session.layer.paint(0, 0, 2, 1);
  session.stroke(true);
  session.layer.paint(2, 0, 0, 2);
  session.layer.paint(2, 0, 1, 2);
  session.stroke(true);
  const draft = structuredClone(session.draft());
  server.names = { nucleus: 1, vessel: 2 };
  server.renamed = { disc: 'nucleus' };
  await open();
  assert.equal(session.restoreDraft(draft), true);
  await session.submit();
  assert.deepEqual([nameAt(0, 0, 4), nameAt(0, 0, 3)], ['core', 'nucleus']);
  assert.equal(server.told[server.marks[at(2, 0, 5)]], 'core');
});

test('paint that the server does not have keeps its name when labels are taken over', async () => {
  await paintCore();
  session.takeLabels({ label_names: { disc: 1, vessel: 2 }, colors: {}, renamed_labels: {} });
  assert.deepEqual(session.study.label_names, { disc: 1, vessel: 2, core: 3 });
  assert.equal(session.grid.toServer(session.layer.read())[at(0, 0, 4)], 3);
  session.takeLabels({ label_names: { disc: 1, vessel: 2, core: 4, bone: 3 }, colors: {}, renamed_labels: {} });
  assert.equal(session.grid.toServer(session.layer.read())[at(0, 0, 4)], 4);
  await session.submit();
  assert.equal(nameAt(0, 0, 4), 'core');
});

test('so it does after the submission of somebody else', async () => {
  await paintCore();
  const theirs = new Uint8Array(SIZE);
  theirs[at(2, 1, 0)] = 2;
  server.take(theirs, [0]);
  server.names = { disc: 1, vessel: 2 };
  assert.deepEqual(await session.submit(), { merged: true });
  assert.deepEqual([nameAt(0, 0, 4), nameAt(2, 1, 0)], ['core', 'vessel']);
});

test('a label whose former name another one has now is still the same', async () => {
  await paintCore();
  const draft = structuredClone(session.draft());
  server.names = { disc: 1, annulus: 2, core: 3 };
  server.renamed = { core: 'annulus' };
  session.takeLabels({ label_names: server.names, colors: {}, renamed_labels: server.renamed });
  assert.equal(session.grid.toServer(session.layer.read())[at(0, 0, 4)], 2);
  await open();
  assert.equal(session.restoreDraft(draft), true);
  assert.equal(session.grid.toServer(session.layer.read())[at(0, 0, 4)], 2);
});

test('a label that is gone and that nobody painted here is forgotten', async () => {
  session.takeLabels({ label_names: { disc: 1 }, colors: {}, renamed_labels: {} });
  assert.deepEqual(session.study.label_names, { disc: 1 });
  await paintCore();
  session.takeLabels({ label_names: { disc: 1, center: 2 }, colors: {}, renamed_labels: { core: 'center' } });
  await session.submit();
  assert.equal(nameAt(0, 0, 4), 'center');
});

test('labels stay hidden when other views are shown', async () => {
  session.showLabels(false);
  delete session.layer.visible;
  await session.attach([{}]);
  assert.equal(session.layer.visible, false);
  session.showLabels(true);
  assert.deepEqual([session.layer.visible, session.scribbles.visible], [true, true]);
});

test('a stroke can be taken back', () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  assert.equal(session.undoStroke(), 4);
  assert.equal(session.unsaved, false);
  assert.deepEqual([...session.layer.read()], [...new Uint8Array(SIZE)]);
  assert.equal(session.undoStroke(), null);
});

test('a slice whose paint was erased again is not annotated', () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  session.layer.paint(0, 0, 1, 0);
  assert.equal(session.stroke(true), 'slice');
  assert.deepEqual(session.annotation.own, []);
});

test('a draft brings everything back that the server does not have', async () => {
  session.layer.paint(0, 0, 1, 2);
  session.stroke(true);
  session.layer.paint(1, 1, 4, 1);
  session.stroke(true);
  session.annotation.setComplete(1, false);
  session.layer.paint(2, 0, 0, 1);
  session.layer.paint(2, 0, 1, 1);
  session.stroke(true);
  const draft = structuredClone(session.draft());
  const shown = session.layer.read();
  await open();
  assert.equal(session.restoreDraft(draft), true);
  assert.deepEqual(session.layer.read(), shown);
  assert.deepEqual([session.annotation.complete, session.annotation.unfinished], [[4], [1]]);
  assert.equal(session.scribblesChanged, true);
  await session.submit();
  assert.deepEqual(
    session.draft().slices.map(({ slice }) => slice),
    [1],
  );
  assert.equal(session.restoreDraft({ ...draft, axis: 0 }), false);
});
