"use strict";
(() => {
  const FACES = [[[1, 0, 0], 0.82], [[-1, 0, 0], 0.74], [[0, 1, 0], 0.7], [[0, -1, 0], 0.9], [[0, 0, 1], 1.08], [[0, 0, -1], 0.55]];
  const decode = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  // Rows of x, y, z, red, green, blue to triangles of the faces that touch no other voxel.
  function meshOf(rows, size) {
    const [nx, ny, nz] = size, full = new Uint8Array((nx + 2) * (ny + 2) * (nz + 2));
    const at = (x, y, z) => ((x + 1) * (ny + 2) + y + 1) * (nz + 2) + z + 1;
    for (let i = 0; i < rows.length; i += 6) full[at(rows[i], rows[i + 1], rows[i + 2])] = 1;
    const places = [], colours = [];
    for (let i = 0; i < rows.length; i += 6) {
      const cell = [rows[i], rows[i + 1], rows[i + 2]];
      for (const [n, light] of FACES) {
        if (full[at(cell[0] + n[0], cell[1] + n[1], cell[2] + n[2])]) continue;
        const axis = n.findIndex((v) => v !== 0), u = (axis + 1) % 3, w = (axis + 2) % 3;
        const corner = (a, b) => {
          const p = cell.slice();
          p[axis] += n[axis] > 0 ? 1 : 0; p[u] += a; p[w] += b;
          return [p[0] - nx / 2, p[1] - ny / 2, p[2] - nz / 2];
        };
        const shade = (c, p) => Math.min(255, c * light * (0.86 + 0.14 * (p[2] / nz + 0.5)));
        for (const [a, b] of [[0, 0], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]]) {
          const p = corner(a, b);
          places.push(p[0], p[1], p[2]);
          for (let k = 3; k < 6; k++) colours.push(shade(rows[i + k], p) / 255);
        }
      }
    }
    return { places: new Float32Array(places), colours: new Float32Array(colours), count: places.length / 3 };
  }

  function shader(gl, type, source) {
    const made = gl.createShader(type);
    gl.shaderSource(made, source); gl.compileShader(made);
    return made;
  }

  function start(canvas) {
    const size = canvas.dataset.size.split(",").map(Number), mesh = meshOf(decode(canvas.dataset.voxels), size);
    canvas.dataset.triangles = String(mesh.count / 3);
    const gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) { canvas.dataset.state = "no webgl"; return; }
    const program = gl.createProgram();
    gl.attachShader(program, shader(gl, gl.VERTEX_SHADER,
      "attribute vec3 p; attribute vec3 c; uniform mat3 turn; uniform vec2 scale; varying vec3 ink;" +
      "void main() { vec3 q = turn * p; gl_Position = vec4(q.x * scale.x, q.y * scale.x, -q.z * scale.y, 1.0); ink = c; }"));
    gl.attachShader(program, shader(gl, gl.FRAGMENT_SHADER,
      "precision mediump float; varying vec3 ink; void main() { gl_FragColor = vec4(ink, 1.0); }"));
    gl.linkProgram(program); gl.useProgram(program);
    for (const [name, data] of [["p", mesh.places], ["c", mesh.colours]]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      const place = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(place); gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
    }
    gl.enable(gl.DEPTH_TEST); gl.clearColor(0, 0, 0, 0);
    const radius = Math.hypot(...size) / 2;
    let yaw = 0.55, pitch = 0.45, zoom = 1, held = null, waiting = false;
    function draw() {
      waiting = false;
      const cy = Math.cos(yaw), sy = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
      // Rows: to the right, up, towards the viewer; stored by columns.
      gl.uniformMatrix3fv(gl.getUniformLocation(program, "turn"), false,
        [cy, -sy * sp, sy * cp, sy, cy * sp, -cy * cp, 0, cp, sp]);
      gl.uniform2f(gl.getUniformLocation(program, "scale"), zoom / radius, 0.5 / radius);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
      gl.drawArrays(gl.TRIANGLES, 0, mesh.count);
      canvas.dataset.state = "drawn"; canvas.dataset.yaw = yaw.toFixed(4);
    }
    const again = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
    canvas.addEventListener("pointerdown", (e) => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
    canvas.addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("pointermove", (e) => {
      if (!held) return;
      yaw -= (e.clientX - held[0]) * 0.012;
      pitch = Math.max(-1.5, Math.min(1.5, pitch + (e.clientY - held[1]) * 0.012));
      held = [e.clientX, e.clientY]; again();
    });
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault(); zoom = Math.max(0.5, Math.min(6, zoom * Math.exp(-e.deltaY * 0.001))); again();
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[e.key];
      if (!step) return;
      e.preventDefault(); yaw += step[0]; pitch = Math.max(-1.5, Math.min(1.5, pitch + step[1])); again();
    });
    draw();
  }
  document.querySelectorAll("canvas.voxels").forEach(start);
})();
