import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { load } from './load.mjs';

const { Client, Problem, serverRoot } = load(['client']);

let server;
let answer;
let asked;
let client;

before(async () => {
  server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) {
      chunks.push(chunk);
    }
    asked = {
      method: request.method,
      url: request.url,
      type: request.headers['content-type'],
      body: Buffer.concat(chunks),
    };
    answer(response);
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  client = new Client(`http://127.0.0.1:${server.address().port}`, fetch);
});

after(() => server.close());

const json =
  (value, status = 200) =>
  response => {
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(value));
  };

test('the server is found from the address of the viewer', () => {
  assert.equal(serverRoot('/ohif/labelprop'), '');
  assert.equal(serverRoot('/hospital/ohif/viewer'), '/hospital');
});

test('a question and its answer', async () => {
  answer = json({ shape: [1, 2, 3] });
  assert.deepEqual(await client.study('1.2.3'), { shape: [1, 2, 3] });
  assert.deepEqual([asked.method, asked.url], ['GET', '/labelprop/study?image=1.2.3']);
});

test('labels go as JSON', async () => {
  answer = json({});
  await client.saveLabels('1.2', [{ name: 'Å', color: '#ff0000' }]);
  assert.equal(asked.type, 'application/json');
  assert.deepEqual(JSON.parse(asked.body), { labels: [{ name: 'Å', color: '#ff0000' }] });
});

test('voxels go as the file label.bin beside their parameters', async () => {
  answer = json({ annotation_version: 'v2' });
  const { annotation_version: version } = await client.submit('1.2', Uint8Array.of(0, 1, 255), {
    annotated_slices: [4],
  });
  assert.equal(version, 'v2');
  assert.equal(asked.url, '/datastore/label?image=1.2&tag=sparse');
  const form = await new Response(asked.body, { headers: { 'Content-Type': asked.type } }).formData();
  assert.deepEqual(JSON.parse(form.get('params')), { annotated_slices: [4] });
  assert.equal(form.get('label').name, 'label.bin');
  assert.deepEqual([...new Uint8Array(await form.get('label').arrayBuffer())], [0, 1, 255]);
});

test('voxels come as bytes, wide ones as far as they fit', async () => {
  const send = (values, dtype) => response => {
    response.writeHead(200, { 'X-Dtype': dtype, 'X-Annotation-Version': 'v1' });
    response.end(Buffer.from(values.buffer));
  };
  answer = send(Uint8Array.of(3, 4), 'uint8');
  assert.deepEqual(await client.voxels('1.2', 'labels'), { values: Uint8Array.of(3, 4), version: 'v1' });
  answer = send(Uint16Array.of(3, 200), 'uint16');
  assert.deepEqual((await client.voxels('1.2', 'labels')).values, Uint8Array.of(3, 200));
  answer = send(Uint16Array.of(3, 300), 'uint16');
  await assert.rejects(client.voxels('1.2', 'labels'), /above 253/);
});

test('what the server says is said', async () => {
  answer = json({ detail: 'Paint at least one slice.' }, 400);
  await assert.rejects(
    client.propagate('1.2'),
    error => error instanceof Problem && error.status === 400 && error.message === 'Paint at least one slice.',
  );
});

test('an answer that is no sentence becomes one', async () => {
  answer = response => response.writeHead(502).end('<html>Bad gateway</html>');
  await assert.rejects(client.study('1.2'), /error 502/);
  answer = json({ detail: [{ loc: ['query', 'image'] }] }, 422);
  await assert.rejects(client.study('1.2'), /error 422/);
});

test('a server that is gone is said to be, and nothing is lost', async () => {
  const gone = new Client('http://127.0.0.1:9', fetch);
  await assert.rejects(gone.study('1.2'), error => error.status === 0 && /does not answer.*safe/.test(error.message));
  answer = response => response.destroy();
  await assert.rejects(client.study('1.2'), /does not answer/);
});
