"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const NAMES = ["the", "cat", "sat", "on", "my", "mat"];
  const START = [2.0, 1.2, 0.4, -0.2, -0.9, -1.6];
  const { runs } = JSON.parse(byId("data").textContent);
  let logits = [...START], token = 0;

  const signed = (x, digits = 3) => (Math.abs(x) < 0.5 * 10 ** -digits ? (0).toFixed(digits) : (x > 0 ? "+" : "") + x.toFixed(digits)).replace("-", "−");
  const plain = (x, digits = 3) => x.toFixed(digits).replace("-", "−");
  const element = (kind, attributes = {}, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return made;
  };

  function update() {
    const read = (id) => Number(byId(id).value);
    return { advantage: read("advantage"), ratio: read("ratio"), step: 10 ** read("step"), clip: { low: read("low"), high: read("high"), dual: 10 } };
  }

  // One state.
  function sliders() {
    NAMES.forEach((name, i) => {
      const row = document.createElement("div");
      row.className = "slider";
      row.innerHTML = `<label><input type="radio" name="token" aria-label="sampled token: ${name}"${i ? "" : " checked"}> “${name}”</label><input type="range" min="-5" max="8" step="0.1" aria-label="logit of ${name}"><output></output>`;
      const [radio, range] = row.querySelectorAll("input");
      radio.addEventListener("change", () => { token = i; show(); });
      range.addEventListener("input", () => { logits[i] = Number(range.value); show(); });
      byId("logits").append(row);
    });
  }

  function bars(before, after) {
    const parts = [], wide = 460 / NAMES.length, high = 190;
    before.forEach((p, i) => {
      const x = i * wide + 10, sampled = i === token;
      parts.push(element("rect", { x, width: wide - 20, y: 215 - high * after[i], height: high * after[i], class: sampled ? "bar sampled" : "bar" }));
      parts.push(element("rect", { x, width: wide - 20, y: 215 - high * p, height: high * p, class: "before" }));
      parts.push(element("text", { x: x + wide / 2 - 10, y: 232, "text-anchor": "middle" }, (sampled ? "▲ " : "") + NAMES[i]));
      parts.push(element("text", { x: x + wide / 2 - 10, y: 247, "text-anchor": "middle", class: "muted" }, plain(after[i])));
      parts.push(element("text", { x: x + wide / 2 - 10, y: 209 - high * Math.max(p, after[i]), "text-anchor": "middle", class: "muted" }, signed(after[i] - p)));
    });
    byId("bars").replaceChildren(...parts);
  }

  function put(id, value, coloured = false) {
    byId(id).textContent = coloured ? signed(value, 4) : plain(value);
    if (coloured) byId(id).className = Math.abs(value) < 5e-5 ? "" : value > 0 ? "up" : "down";
  }

  function show() {
    const { advantage, ratio, step, clip } = update(), slope = formulas.slope(ratio, advantage, clip);
    const after = formulas.stepped(logits, token, slope, step), exact = formulas.measured(logits, token, slope, step);
    const omega = formulas.omega(logits, token, slope), quadrant = formulas.quadrant(logits, token, advantage);
    bars(formulas.softmax(logits), formulas.softmax(after));
    byId("bars-words").textContent = `Filled: p after the step; dashed: before it. The triangle marks the sampled token. Entropy after the step: ${plain(formulas.entropy(after))} nats.`;
    put("h", formulas.entropy(logits));
    put("w", slope);
    put("omega", omega, true);
    byId("omega").className = "";
    put("paper", -omega * step, true);
    put("first", formulas.firstOrder(logits, token, slope) * step, true);
    put("exact", exact, true);
    for (const box of document.querySelectorAll("[data-quadrant]")) box.classList.toggle("here", box.dataset.quadrant === quadrant);
    byId("told").textContent = words(advantage, ratio, clip, slope, exact, omega, quadrant);
    [...byId("logits").children].forEach((row, i) => {
      const [radio, range] = row.querySelectorAll("input");
      radio.checked = i === token;
      range.value = logits[i];
      row.querySelector("output").textContent = plain(logits[i], 1);
    });
    for (const id of ["advantage", "ratio", "low", "high"]) byId(id).parentNode.querySelector("output").textContent = plain(Number(byId(id).value), 2);
    byId("step").parentNode.querySelector("output").textContent = step.toPrecision(2);
  }

  function words(advantage, ratio, clip, slope, exact, omega, quadrant) {
    if (!advantage) return "A is 0: the answer was as good as its group, so this token is not pushed and nothing changes.";
    if (!slope) return `The clip stops this update: r = ${plain(ratio, 2)} is ${advantage > 0 ? `above 1 + ${plain(clip.high, 2)}` : `below 1 − ${plain(clip.low, 2)}`}. Nothing changes.`;
    const u = formulas.excess(logits, token), side = u > 0 ? "likely" : "unlikely";
    const way = Math.abs(exact) < 5e-5 ? "hardly changes" : exact > 0 ? "rises" : "falls";
    const agrees = Math.abs(exact) < 5e-5 || Math.sign(exact) === -Math.sign(omega);
    return `“${NAMES[token]}” is ${side} (ln p + H = ${signed(u)}) and ${advantage > 0 ? "rewarded" : "punished"}: quadrant ${quadrant.replace("_", ", ")}. Entropy ${way} by ${plain(Math.abs(exact), 4)} nats. ` +
      (agrees ? "The estimate −Ω has the right sign." : "The estimate −Ω has the wrong sign here: the other tokens' logits moved too.");
  }

  function take() {
    const { advantage, ratio, step, clip } = update();
    const moved = formulas.stepped(logits, token, formulas.slope(ratio, advantage, clip), step);
    const mean = moved.reduce((a, b) => a + b, 0) / moved.length; // logits mean the same with a constant added
    const low = Math.max(-5 - Math.min(...moved), Math.min(-mean, 8 - Math.max(...moved)));
    logits = moved.map((z) => z + low);
    show();
  }

  function sampleAndStep() {
    const p = formulas.softmax(logits), draw = Math.random();
    let sum = 0;
    token = Math.max(0, p.findIndex((x) => (sum += x) > draw));
    take();
  }

  // An entropy curve.
  const KNOTS = 5, POINTS = 41, TOP = 0.45, EDGE = { left: 58, right: 16, top: 14, bottom: 40 };
  const canvas = byId("draw");
  let dense = 1; // pixels of the canvas a pixel of the page

  function fit() {
    const wide = Math.max(280, canvas.clientWidth);
    dense = window.devicePixelRatio || 1;
    canvas.width = Math.round(wide * dense);
    canvas.height = Math.round(Math.max(230, wide * 0.37) * dense);
    Object.assign(EDGE, { left: 46 * dense, right: 14 * dense, top: 12 * dense, bottom: 40 * dense });
  }

  let until = 200, drawn = [];
  const CURVES = { collapse: (t) => 0.12 + 0.19 * Math.exp(-2.6 * t), slow: (t) => 0.304 - 0.1 * t, flat: () => 0.304 };
  const xs = () => Array.from({ length: POINTS }, (_, i) => (i * until) / (POINTS - 1));
  const place = (x, y) => [EDGE.left + (x / until) * (canvas.width - EDGE.left - EDGE.right), canvas.height - EDGE.bottom - (y / TOP) * (canvas.height - EDGE.top - EDGE.bottom)];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function line(brush, points, name, width) {
    brush.strokeStyle = colour(name);
    brush.lineWidth = width * dense;
    brush.beginPath();
    points.forEach(([x, y], i) => (i ? brush.lineTo(x, y) : brush.moveTo(x, y)));
    brush.stroke();
  }

  function axes(brush) {
    brush.clearRect(0, 0, canvas.width, canvas.height);
    brush.font = `${13 * dense}px system-ui, sans-serif`;
    brush.fillStyle = colour("--muted");
    brush.textAlign = "right";
    for (let y = 0; y <= 0.4001; y += 0.1) {
      line(brush, [place(0, y), place(until, y)], "--line", 1);
      brush.fillText(y.toFixed(1), EDGE.left - 8 * dense, place(0, y)[1] + 4 * dense);
    }
    brush.textAlign = "center";
    for (let i = 0; i <= 4; i++) brush.fillText(Math.round((i * until) / 4), place((i * until) / 4, 0)[0], canvas.height - 23 * dense);
    brush.fillText("rollout", canvas.width / 2, canvas.height - 6 * dense);
    brush.textAlign = "left";
    brush.fillText("entropy, nats a token", EDGE.left + 4 * dense, EDGE.top + 6 * dense);
  }

  function curve() {
    const found = formulas.nearest(runs, xs(), drawn, until, 3), brush = canvas.getContext("2d");
    const looks = ["--first", "--second", "--third"];
    axes(brush);
    found.forEach(({ run }, i) => {
      const kept = run.steps.map((step, k) => [step, run.entropy[k]]).filter(([step]) => step <= until);
      line(brush, kept.map(([x, y]) => place(x, y)), looks[i], 2.5);
    });
    line(brush, xs().map((x, i) => place(x, drawn[i])), "--ink", 4);
    table(found, looks);
    knots();
  }

  function table(found, looks) {
    byId("found").textContent = `The ${found.length} nearest of the ${runs.filter((run) => run.steps.at(-1) >= until).length} runs that reach rollout ${until}; values at the start → at rollout ${until}. Black or white: your curve.`;
    byId("runs").replaceChildren(...found.map(({ run, distance }, i) => {
      const row = document.createElement("tr"), head = document.createElement("th"), swatch = document.createElement("span");
      head.scope = "row";
      swatch.className = "swatch";
      swatch.style.background = `var(${looks[i]})`;
      head.append(swatch, `${run.label}, seed ${run.seed}`);
      row.append(head);
      const move = (values) => `${plain(values[0], 2)} → ${plain(formulas.at(run.steps, values, until), 2)}`;
      for (const text of [plain(distance), move(run.entropy), move(run.pass1), move(run.pass32)]) row.insertCell().textContent = text;
      row.insertCell().append(paths(run));
      return row;
    }));
  }

  function paths(run) {
    const svg = element("svg", { viewBox: "0 0 110 34", class: "path", role: "img", "aria-label": "pass@1 and pass@32 over the run" });
    for (const values of [run.pass1, run.pass32]) {
      const points = run.steps.map((step, i) => [step, values[i]]).filter(([step]) => step <= until).map(([step, y]) => `${(2 + (106 * step) / until).toFixed(1)},${(32 - 30 * y).toFixed(1)}`);
      svg.append(element("polyline", { points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": values === run.pass1 ? 1.2 : 2 }));
    }
    return svg;
  }

  function knots() {
    const box = byId("knots"), step = (POINTS - 1) / (KNOTS - 1);
    for (let i = 0; i < KNOTS; i++) {
      let row = box.children[i];
      if (!row) {
        row = document.createElement("div");
        row.className = "slider";
        row.innerHTML = `<label for="knot${i}"></label><input type="range" id="knot${i}" min="0" max="${TOP}" step="0.005"><output></output>`;
        row.querySelector("input").addEventListener("input", bend);
        box.append(row);
      }
      row.querySelector("label").textContent = `at rollout ${Math.round((i * until) / (KNOTS - 1))}`;
      row.querySelector("input").value = drawn[i * step];
      row.querySelector("output").textContent = plain(drawn[i * step]);
    }
  }

  function bend() {
    const values = [...byId("knots").querySelectorAll("input")].map((input) => Number(input.value));
    const places = values.map((_, i) => (i * until) / (KNOTS - 1));
    drawn = xs().map((x) => formulas.at(places, values, x));
    curve();
  }

  let last = null;
  function draw(event) {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    const across = ((event.clientX - box.left) * scale - EDGE.left) / (canvas.width - EDGE.left - EDGE.right);
    const up = (canvas.height - EDGE.bottom - (event.clientY - box.top) * scale) / (canvas.height - EDGE.top - EDGE.bottom);
    const at = Math.min(POINTS - 1, Math.max(0, Math.round(across * (POINTS - 1)))), value = Math.min(TOP, Math.max(0, up * TOP));
    const [from, old] = last || [at, value];
    for (let i = Math.min(from, at); i <= Math.max(from, at); i++) drawn[i] = from === at ? value : old + ((value - old) * (i - from)) / (at - from);
    last = [at, value];
    curve();
  }

  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = null; draw(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) draw(event); });
  function ready(name) { drawn = xs().map((x) => CURVES[name](x / 200)); curve(); }
  for (const button of document.querySelectorAll("[data-curve]")) button.addEventListener("click", () => ready(button.dataset.curve));
  for (const radio of document.querySelectorAll("input[name=until]")) radio.addEventListener("change", () => { until = Number(radio.value); ready("collapse"); });
  for (const id of ["advantage", "ratio", "low", "high", "step"]) byId(id).addEventListener("input", show);
  byId("take").addEventListener("click", take);
  byId("again").addEventListener("click", sampleAndStep);
  byId("reset").addEventListener("click", () => { logits = [...START]; token = 0; show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", curve);
  window.addEventListener("resize", () => { fit(); curve(); });
  fit();
  sliders();
  show();
  ready("collapse");
})();
