import assert from 'node:assert/strict';
import { test } from 'node:test';
import { load } from './load.mjs';

const { Grid, imageMatrix, invert, transform } = load(['client', 'grid', 'words']);

const SHAPE = [4, 3, 5];
const AXIAL = [
  [0.9, 0, 0, -20],
  [0, 0.8, 0, 7],
  [0, 0, 4, -30],
  [0, 0, 0, 1],
];
// acquired from right to left, rows along y, columns downwards, and leaning a little
const SAGITTAL = [
  [0, 0.2, -4, 40],
  [0.9, 0, 0, -20],
  [0, -0.8, -0.2, 33],
  [0, 0, 0, 1],
];

/** A volume whose value says where its voxel lies, in millimetres. */
function located({ shape, matrix }) {
  const places = [];
  for (let k = 0; k < shape[2]; k++) {
    for (let j = 0; j < shape[1]; j++) {
      for (let i = 0; i < shape[0]; i++) {
        places.push(
          transform(matrix, [i, j, k])
            .map(value => value.toFixed(3))
            .join(),
        );
      }
    }
  }
  return places;
}

/** The same voxels with axes in another order, some of them counted from the other end. */
function rearranged({ shape, matrix }, order, reversed) {
  const far = order.map(axis => (reversed.includes(axis) ? shape[axis] - 1 : 0));
  const columns = order.map(axis => [0, 1, 2].map(row => matrix[row][axis] * (reversed.includes(axis) ? -1 : 1)));
  const corner = [0, 0, 0];
  order.forEach((axis, n) => (corner[axis] = far[n]));
  const origin = transform(matrix, corner);
  const rows = [0, 1, 2].map(row => [...columns.map(column => column[row]), origin[row]]);
  return { shape: order.map(axis => shape[axis]), matrix: [...rows, [0, 0, 0, 1]] };
}

const ORDERS = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
];
const REVERSALS = [[], [2], [0, 1], [0, 1, 2]];

test('an inverse undoes its matrix', () => {
  const there = transform(SAGITTAL, [1, 2, 3]);
  transform(invert(SAGITTAL), there).forEach((value, axis) => assert.ok(Math.abs(value - [1, 2, 3][axis]) < 1e-9));
});

test('the matrix of an image takes its directions one axis after the other', () => {
  const matrix = imageMatrix([27, -30, 28], [1, 2, 4], [0, 1, 0, 0, 0, -1, -1, 0, 0]);
  assert.deepEqual(transform(matrix, [1, 0, 0]), [27, -29, 28]);
  assert.deepEqual(transform(matrix, [0, 1, 0]), [27, -30, 26]);
  assert.deepEqual(transform(matrix, [0, 0, 1]), [23, -30, 28]);
});

for (const [name, matrix] of Object.entries({ AXIAL, SAGITTAL })) {
  for (const order of ORDERS) {
    for (const reversed of REVERSALS) {
      const server = { shape: SHAPE, matrix };
      const viewer = rearranged(server, order, reversed);

      test(`${name} ${order}, reversed ${reversed}: every voxel keeps its place`, () => {
        const grid = new Grid(viewer, server);
        assert.deepEqual(grid.toServer(located(viewer)), located(server));
        assert.deepEqual(grid.toViewer(located(server)), located(viewer));
      });
    }
  }
}

test("slices are the server's, in whatever order the viewer counts", () => {
  const server = { shape: SHAPE, matrix: AXIAL };
  const grid = new Grid(rearranged(server, [2, 0, 1], [2]), server);
  const before = new Uint8Array(grid.size);
  const volume = new Uint8Array(grid.size);
  volume[3] = 7; // the viewer's first axis is the server's last one, counted from the other end
  assert.deepEqual(grid.changedSlices(before, volume, 2), [1]);
  assert.equal(grid.sliceDiffers(before, volume, 2, 1), true);
  assert.equal(grid.sliceDiffers(before, volume, 2, 3), false);
  const slice = grid.slice(volume, 2, 1);
  assert.equal(slice.length, 12);
  const copy = new Uint8Array(grid.size);
  grid.putSlice(copy, 2, 1, slice);
  assert.deepEqual(copy, volume);
});

test('a point in space finds its slice, and a slice its centre', () => {
  const server = { shape: SHAPE, matrix: SAGITTAL };
  const grid = new Grid(rearranged(server, [1, 0, 2], [0, 2]), server);
  for (const axis of [0, 1, 2]) {
    for (let index = 0; index < SHAPE[axis]; index++) {
      assert.equal(grid.sliceAt(axis, grid.sliceCentre(axis, index)), index);
    }
  }
  assert.equal(grid.sliceAt(2, transform(SAGITTAL, [0, 0, 9])), null);
  const along = grid.direction(2);
  assert.ok(Math.abs(Math.hypot(...along) - 1) < 1e-9);
  assert.ok(along[0] < -0.9);
});

test('other voxels are refused', () => {
  const server = { shape: SHAPE, matrix: AXIAL };
  const shifted = AXIAL.map((row, n) => (n === 2 ? [...row.slice(0, 3), row[3] + 2] : row));
  const scaled = AXIAL.map((row, n) => (n === 2 ? [0, 0, 8, row[3]] : row));
  const refused = /other voxels/;
  assert.throws(() => new Grid({ shape: SHAPE, matrix: shifted }, server), refused);
  assert.throws(() => new Grid({ shape: SHAPE, matrix: scaled }, server), refused);
  assert.throws(() => new Grid({ shape: [4, 3, 6], matrix: AXIAL }, server), /holds more .* \(4 × 3 × 6 voxels, not/);
  assert.throws(() => new Grid({ shape: [4, 3, 4], matrix: AXIAL }, server), refused);
});
