import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';
import { load } from './load.mjs';
import { MemoryServer, MemoryStore, MemoryViewer } from './memory.mjs';

const browser = { location: { pathname: '/ohif/' }, setTimeout: () => {}, clearTimeout() {} };
const SCRIPTS = ['annotation', 'client', 'drafts', 'grid', 'panel', 'session', 'words'];
const { Drafts, Panel, Session } = load(SCRIPTS, browser);

const IMAGE = '1.2';

let store;
let server;

beforeEach(() => {
  store = new MemoryStore();
  server = new MemoryServer();
});

/** A tab of the browser that opens the series: its panel, without any view, and what it tells. */
async function open(image = IMAGE) {
  const viewer = new MemoryViewer(server.slices);
  const session = new Session(viewer, server, { image, viewports: [{}] }, await server.study());
  await session.load();
  const panel = Object.assign(Object.create(Panel.prototype), { _drafts: new Drafts(store), _session: null, told: [] });
  panel._notify = (kind, text) => panel.told.push(text);
  panel._update = () => {};
  await panel._restoreDraft(session);
  panel._session = session;
  return panel;
}

/** Paint on a slice of the server; the draft is written. */
async function paint(panel, slice, value = 1, i = 0) {
  const { _session: session } = panel;
  session.layer.paint(i, 0, server.slices - 1 - slice, value);
  session.stroke(true);
  await save(panel);
}

async function save(panel) {
  panel._saveDraft();
  await panel._drafts._saved;
}

const own = panel => panel._session.annotation.own;
const told = /that you painted and did not submit waits? in this browser, painted (.+)\. (It comes|They come) back/;

test('a draft comes back', async () => {
  const panel = await open();
  assert.deepEqual(panel.told, []);
  await paint(panel, 1);
  await paint(panel, 4);
  const again = await open();
  assert.deepEqual(own(again), [1, 4]);
  assert.deepEqual(again._session.layer.read(), panel._session.layer.read());
  assert.deepEqual(again.told, ['What you had painted and not submitted was restored.']);
  await again._session.submit();
  await save(again);
  assert.deepEqual([...store.kept.keys()], []);
});

test('a draft along another direction waits, is told of, and comes back when it fits', async () => {
  const panel = await open();
  await paint(panel, 1);
  await paint(panel, 4);
  server.axis = 0;
  const other = await open();
  assert.deepEqual(own(other), []);
  assert.match(other.told.join(), /^2 slices that .* painted along another direction than the study is annotated now/);
  other._session.layer.paint(0, 0, 0, 2);
  other._session.stroke(true);
  await save(other);
  await other._session.submit();
  await save(other);
  server.axis = 2;
  const again = await open();
  assert.deepEqual(own(again).filter(slice => [1, 4].includes(slice)), [1, 4]);
  assert.match(again.told.join(), /was restored/);
});

test('so does one of a series that had other slices then; closing the tab removes nothing', async () => {
  await paint(await open(), 1);
  server = new MemoryServer(8);
  const other = await open();
  assert.match(other.told.join(), /^A slice that .* painted when this series had other slices/);
  await save(other);
  await paint(other, 1, 2);
  assert.equal(told.test((await open()).told.join()), true, 'told each time');
  server = new MemoryServer();
  const again = await open();
  assert.deepEqual([own(again), again._session.layer.read().filter(Boolean).length], [[1], 1]);
});

test('scribbles have no direction, slices that were painted with them do', async () => {
  const panel = await open();
  panel._session.scribbles.paint(0, 0, 0, 1);
  panel._session.scribble();
  await paint(panel, 4);
  server.axis = 0;
  const other = await open();
  assert.deepEqual([own(other), other._session.scribblesChanged, other.told.length], [[], true, 2]);
  await other._session.submit();
  await save(other);
  server.axis = 2;
  const again = await open();
  assert.deepEqual([own(again), again._session.scribblesChanged], [[4], false]);
});

test('the draft of an earlier release, by the series alone, is found, also where it does not fit', async () => {
  const panel = await open();
  await paint(panel, 4);
  panel._session.scribbles.paint(0, 0, 0, 1);
  panel._session.scribble();
  store.kept.clear();
  store.kept.set(IMAGE, panel._session.draft());
  server.axis = 0;
  const other = await open();
  assert.match(other.told.join(), told);
  await save(other);
  server.axis = 2;
  const again = await open();
  await again._drafts._saved;
  assert.deepEqual([own(again), again._session.scribblesChanged], [[4], true]);
  assert.deepEqual([...store.kept.keys()].sort(), ['1.2 3,2,6 2 4', '1.2 3,2,6 scribbles 0']);
  await again._session.submit();
  await save(again);
  assert.deepEqual((await open()).told, []);
});

test('two tabs write over each other only on the same slice', async () => {
  const watching = await open();
  const first = await open();
  await paint(first, 1);
  const second = await open();
  assert.deepEqual(own(second), [1]);
  await paint(second, 4);
  await paint(first, 2);
  await save(watching);
  const after = await open();
  assert.deepEqual(own(after), [1, 2, 4]);
  await paint(first, 1, 2, 1);
  await save(second);
  await save(after);
  assert.deepEqual((await open())._session.layer.read(), sum(first, second), 'the last stroke on each slice');
  await first._session.submit();
  await save(first);
  await save(second);
  assert.deepEqual([...store.kept.keys()], ['1.2 3,2,6 2 4'], 'what one tab submitted is no draft of the other');
});

test('scribbles of two tabs are kept apart too', async () => {
  const [first, second] = [await open(), await open()];
  for (const [panel, k] of [[first, 1], [second, 4]]) {
    panel._session.scribbles.paint(0, 0, k, 1);
    panel._session.scribble();
    await save(panel);
  }
  await save(first);
  const after = await open();
  assert.deepEqual([...after._session.draft().scribbles.at], [6, 24]);
  await second._session.submit();
  await save(second);
  assert.deepEqual([...(await open())._session.draft().scribbles.at], [6]);
});

/** What two panels show. */
const sum = (one, other) => one._session.layer.read().map((value, n) => value || other._session.layer.read()[n]);

test('drafts of another series are its own', async () => {
  await paint(await open('1.2.3'), 4);
  const panel = await open();
  assert.deepEqual([own(panel), panel.told], [[], []]);
  await paint(panel, 1);
  await panel._session.submit();
  await save(panel);
  assert.deepEqual((await open('1.2.3'))._session.annotation.draft, [4]);
});

test('what could not be kept is tried again with the next stroke', async () => {
  const panel = await open();
  store.full = true;
  await paint(panel, 1);
  assert.equal(store.kept.size, 0);
  store.full = false;
  await paint(panel, 4);
  assert.deepEqual(own(await open()), [1, 4]);
});

test('a browser without a store lets paint all the same', async () => {
  const panel = await open();
  panel._drafts = new Drafts(undefined);
  await panel._restoreDraft(panel._session);
  await paint(panel, 1);
  assert.deepEqual(own(panel), [1]);
});

test('what is submitted while another series is opened is no draft any more', async () => {
  const panel = Object.assign(await open(), { _notices: [], _changed: () => {} });
  await paint(panel, 2);
  await panel._request('Submitting', async session => {
    panel._session = null;
    await session.submit();
  });
  await panel._drafts._saved;
  assert.deepEqual([...store.kept.keys()], []);
});
