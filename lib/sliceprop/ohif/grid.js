/**
 * Where the viewer's voxels lie in the server's array.
 *
 * Both hold the same voxels, but the order of slices, the order of axes and their directions may differ; DICOM readers
 * do not agree on them. Nothing here guesses: all of it follows from the two matrices that lead from voxel indices to
 * millimetres in LPS.
 *
 * A matrix is an array of four rows of four numbers, a volume a flat array whose first axis runs fastest.
 */
(() => {
  'use strict';
  const sliceprop = (window.sliceprop = window.sliceprop || {});

  const TOLERANCE = 0.1; // voxels

  /** `matrix` (4x4) applied to a point. */
  function transform(matrix, [x, y, z]) {
    return matrix.slice(0, 3).map(row => row[0] * x + row[1] * y + row[2] * z + row[3]);
  }

  /** The inverse of an affine matrix (4x4). */
  function invert(matrix) {
    const [[a, b, c], [d, e, f], [g, h, i]] = matrix;
    const determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    const linear = [
      [e * i - f * h, c * h - b * i, b * f - c * e],
      [f * g - d * i, a * i - c * g, c * d - a * f],
      [d * h - e * g, b * g - a * h, a * e - b * d],
    ].map(row => row.map(value => value / determinant));
    const origin = [matrix[0][3], matrix[1][3], matrix[2][3]];
    const rows = linear.map(row => [...row, -row.reduce((sum, value, axis) => sum + value * origin[axis], 0)]);
    return [...rows, [0, 0, 0, 1]];
  }

  /**
   * The matrix of a vtk.js image: voxel index to LPS millimetres.
   *
   * @param {number[]} origin centre of voxel 0
   * @param {number[]} spacing mm along i, j, k
   * @param {number[]} direction nine numbers, the unit vectors of i, j and k one after the other
   */
  function imageMatrix(origin, spacing, direction) {
    const rows = [0, 1, 2].map(row => [
      ...[0, 1, 2].map(axis => direction[3 * axis + row] * spacing[axis]),
      origin[row],
    ]);
    return [...rows, [0, 0, 0, 1]];
  }

  /** How the viewer's voxels become the server's. */
  class Grid {
    /**
     * @param {{shape: number[], matrix: number[][]}} viewer
     * @param {{shape: number[], matrix: number[][]}} server
     * @throws {Problem} if the voxels of the two do not coincide
     */
    constructor(viewer, server) {
      this.shape = server.shape;
      this.size = server.shape[0] * server.shape[1] * server.shape[2];
      this.matrix = server.matrix;
      this.toIndex = invert(server.matrix);
      const steps = [1, viewer.shape[0], viewer.shape[0] * viewer.shape[1]];
      const toViewer = this._coinciding(viewer, server);
      /** Offset of the server's voxel 0 in the viewer's array, and the step along each of the server's axes. */
      this.start = transform(toViewer, [0, 0, 0]).reduce((sum, value, axis) => sum + value * steps[axis], 0);
      this.steps = [0, 1, 2].map(axis => [0, 1, 2].reduce((sum, row) => sum + toViewer[row][axis] * steps[row], 0));
    }

    /** The matrix from server indices to viewer indices, a signed permutation of whole voxels. */
    _coinciding(viewer, server) {
      const exact = [0, 1, 2, 3].map(column => {
        const corner = [0, 1, 2].map(axis => (axis === column ? 1 : 0));
        return transform(invert(viewer.matrix), transform(server.matrix, corner));
      });
      const rows = [0, 1, 2].map(row => [
        ...[0, 1, 2].map(column => Math.round(exact[column][row] - exact[3][row])),
        Math.round(exact[3][row]),
      ]);
      const far = server.shape.map(n => n - 1);
      const there = transform(invert(viewer.matrix), transform(server.matrix, far));
      const distance = [
        ...transform(rows, [0, 0, 0]).map((value, row) => value - exact[3][row]),
        ...transform(rows, far).map((value, row) => value - there[row]),
      ];
      const shape = [0, 1, 2].map(row => {
        const axis = [0, 1, 2].find(column => rows[row][column] !== 0);
        return axis === undefined ? 0 : server.shape[axis];
      });
      if (Math.max(...distance.map(Math.abs)) > TOLERANCE || shape.some((n, row) => n !== viewer.shape[row])) {
        throw new sliceprop.Problem(sliceprop.otherVoxels(viewer.shape, server.shape));
      }
      return [...rows, [0, 0, 0, 1]];
    }

    /** The viewer's volume in the order of the server. */
    toServer(volume) {
      const values = new volume.constructor(this.size);
      this._walk((server, viewer) => {
        values[server] = volume[viewer];
      });
      return values;
    }

    /** The server's volume in the order of the viewer. */
    toViewer(volume) {
      const values = new volume.constructor(this.size);
      this._walk((server, viewer) => {
        values[viewer] = volume[server];
      });
      return values;
    }

    _walk(visit) {
      const [ni, nj, nk] = this.shape;
      const [si, sj, sk] = this.steps;
      let server = 0;
      for (let k = 0; k < nk; k++) {
        for (let j = 0; j < nj; j++) {
          for (let i = 0, viewer = this.start + j * sj + k * sk; i < ni; i++, viewer += si) {
            visit(server++, viewer);
          }
        }
      }
    }

    /** One slice of the server's array out of a volume in the order of the viewer, in an order of its own. */
    slice(volume, axis, index) {
      const values = new volume.constructor(this.size / this.shape[axis]);
      this._walkSlice(axis, index, (position, viewer) => {
        values[position] = volume[viewer];
      });
      return values;
    }

    /** Put a slice that `slice` gave back into a volume in the order of the viewer. */
    putSlice(volume, axis, index, values) {
      this._walkSlice(axis, index, (position, viewer) => {
        volume[viewer] = values[position];
      });
    }

    /** Whether two volumes in the order of the viewer differ on a slice of the server. */
    sliceDiffers(first, second, axis, index) {
      const [[na, sa], [nb, sb]] = this._otherAxes(axis);
      const start = this.start + index * this.steps[axis];
      for (let b = 0; b < nb; b++) {
        for (let a = 0, viewer = start + b * sb; a < na; a++, viewer += sa) {
          if (first[viewer] !== second[viewer]) {
            return true;
          }
        }
      }
      return false;
    }

    /** Indices of the server's slices on which two volumes in the order of the viewer differ, ascending. */
    changedSlices(first, second, axis) {
      const all = Array.from({ length: this.shape[axis] }, (_, index) => index);
      return all.filter(index => this.sliceDiffers(first, second, axis, index));
    }

    _walkSlice(axis, index, visit) {
      const [[na, sa], [nb, sb]] = this._otherAxes(axis);
      const start = this.start + index * this.steps[axis];
      let position = 0;
      for (let b = 0; b < nb; b++) {
        for (let a = 0, viewer = start + b * sb; a < na; a++, viewer += sa) {
          visit(position++, viewer);
        }
      }
    }

    _otherAxes(axis) {
      return [0, 1, 2].filter(other => other !== axis).map(other => [this.shape[other], this.steps[other]]);
    }

    /** Unit vector in LPS along which the server's slices are counted. */
    direction(axis) {
      const column = [0, 1, 2].map(row => this.matrix[row][axis]);
      const length = Math.hypot(...column);
      return column.map(value => value / length);
    }

    /** Centre of a slice in LPS millimetres. */
    sliceCentre(axis, index) {
      const voxel = this.shape.map(n => (n - 1) / 2);
      voxel[axis] = index;
      return transform(this.matrix, voxel);
    }

    /** Index of the slice that holds a point in LPS millimetres, null outside the scan. */
    sliceAt(axis, point) {
      const index = Math.round(transform(this.toIndex, point)[axis]) || 0; // never -0
      return index >= 0 && index < this.shape[axis] ? index : null;
    }
  }

  Object.assign(sliceprop, { Grid, imageMatrix, invert, transform });
})();
