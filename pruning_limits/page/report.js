// Fills the page from its data, and again whenever a slider moves.

const data = JSON.parse(document.getElementById("data").textContent);
const stored = data.limit;
const get = (id) => document.getElementById(id);
const short = (value) => (value === null ? "not known" : String(Number(value.toPrecision(4))));

function tag(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function put(id, value, text) {
  get(id).value = value ?? "";
  get(id).textContent = text;
}

const factor = (id) => 10 ** Number(get(id).value);
const isMoved = () => ["epsilon", "weights", "curvature"].some((id) => Number(get(id).value) !== 0);

/** The stored limit, or the limit under the conditions that the sliders tell. */
function ask() {
  if (!isMoved()) return stored;
  const epsilon = Number(get("epsilon").value) === 0 ? null : stored.epsilon * factor("epsilon");
  return whatIf(stored, { epsilon, weightScale: factor("weights"), curvatureScale: factor("curvature") });
}

function showControls(target) {
  const scale = (id) => `× ${Number(factor(id).toPrecision(3))}`;
  const texts = {
    target: `${(100 * target).toFixed(1)}%`,
    epsilon: short(stored.epsilon * factor("epsilon")),
    weights: scale("weights"),
    curvature: scale("curvature"),
  };
  for (const [id, text] of Object.entries(texts)) {
    get(`${id}-value`).textContent = text;
    get(id).setAttribute("aria-valuetext", text);
  }
  get("reset").disabled = !isMoved();
}

function showNumbers(answer) {
  for (const name of ["sparsity", "retrained", "lower", "directional"]) {
    put(name, answer[name], percent(answer[name]));
  }
  const upper = answer.unknown ? null : answer.upper;
  put("upper", upper, percent(upper));
  put("low", answer.interval[0], percent(answer.interval[0]));
  put("high", answer.interval[1], percent(answer.interval[1]));
  put("ceiling", ceiling(answer), percent(ceiling(answer)));
  const { achieved } = answer;
  const headroom = achieved === null || upper === null ? null : upper - achieved;
  const missing = achieved === null ? "–" : "unknown";
  put("achieved", achieved, achieved === null ? "–" : percent(achieved));
  put("headroom", headroom, headroom === null ? missing : `${(100 * headroom).toFixed(2)} pts`);
  put("dimension", answer.parameters * (1 - answer.sparsity), whole(answer.parameters * (1 - answer.sparsity)));
  const change = 100 * (answer.sparsity - stored.sparsity);
  const sign = change < 0 ? "−" : "+";
  const difference = `${sign}${Math.abs(change).toFixed(2)} points from the prediction, ${percent(stored.sparsity)}`;
  get("change").textContent = isMoved() ? difference : "";
}

const whole = (value) => Math.round(value).toLocaleString("en");

function showVerdict(answer, target) {
  const { status, reason } = check(answer, target);
  const name = percent(target);
  get("verdict").className = `verdict ${status}`;
  get("verdict").replaceChildren(tag("strong", {}, `${name} is ${status}`), `: it ${reason.slice(name.length + 1)}.`);
}

function showFigures(answer, target) {
  const least = leastKept(stored, answer);
  const { sparsity, retrained, epsilon } = answer;
  const names = `predicted limit ${percent(sparsity)}, re-trained ${percent(retrained)}`;
  const bounded = `open up to ${percent(ceiling(answer))}, infeasible beyond`;
  const beyond = answer.unknown ? "open beyond" : bounded;
  const zones = `Achievable up to ${percent(answer.lower)}, ${beyond}; ${names}.`;
  drawLine(get("line"), answer, ceiling(answer), target, least, zones);
  drawCrossing(get("crossing"), answer, least, `Norm R against sparsity; the curves cross at the ${names}.`);
  get("carried").hidden = answer.hessian.growth === 1 && (answer.ggn === null || answer.ggn.growth === 1);
  const scale = (2 * epsilon) / squaredNorm(answer.curve, sparsity);
  const size = `Shares of eigenvalues by size on logarithmic axes; the scale c at the limit is ${short(scale)}.`;
  drawSpectrum(get("spectrum"), answer, scale, size);
}

function show() {
  const target = Number(get("target").value);
  showControls(target);
  try {
    const answer = ask();
    showNumbers(answer);
    showVerdict(answer, target);
    showFigures(answer, target);
    get("failure").hidden = true;
  } catch (error) {
    get("failure").textContent =
      `No answer under these conditions: ${error.message}. The numbers are the last ones found.`;
    get("failure").hidden = false;
  }
}

function showLayers() {
  const least = leastKept(
    stored,
    ...stored.layer_table
      .filter(({ sparsity }) => sparsity < 1)
      .map(({ sparsity }) => ({ sparsity, retrained: 0, lower: 0, upper: 0 })),
  );
  const place = sparsityScale(least, 100);
  get("layers-note").textContent = stored.layer_table.length
    ? "At the predicted limit, whatever the sliders say. Bars are logarithmic in the kept fraction."
    : "This limit holds no table of layers.";
  for (const { name, sparsity, weights, norm, trace, trace_error: error } of stored.layer_table) {
    const bar = tag("div", {});
    bar.style.width = `${place(sparsity)}%`;
    const removed = tag(
      "div",
      { className: "removed" },
      tag("div", { className: "track" }, bar),
      tag("span", {}, percent(sparsity)),
    );
    get("layers").append(
      tag(
        "tr",
        {},
        tag("th", { scope: "row" }, name),
        tag("td", {}, removed),
        tag("td", {}, whole(weights)),
        tag("td", {}, short(norm)),
        tag("td", {}, `${short(trace)} ± ${short(error)}`),
      ),
    );
  }
}

function showNotes() {
  const fine = stored.status === "converged";
  const status = fine ? "converged: the numerical error is within the tolerance" : stored.status;
  get("notes").append(tag("li", { className: fine ? "fine" : "" }, `Status: ${status}.`));
  for (const note of stored.notes) get("notes").append(tag("li", {}, note));
}

function showAssumptions() {
  for (const [title, rows] of Object.entries(data.assumptions)) {
    const list = rows.map(([name, text]) => tag("div", {}, tag("dt", {}, name), tag("dd", {}, text)));
    get("assumptions").append(tag("div", {}, tag("h3", {}, title), tag("dl", {}, ...list)));
  }
}

function start() {
  const { curvature, negative, penalty } = stored.settings;
  const matrix = curvature === "hessian" ? "Hessian" : "GGN";
  const sign = negative === "abs" ? "absolute eigenvalues" : "negative eigenvalues as zero";
  const trained = penalty ? `trained with ${penalty}` : "no penalty";
  get("network").textContent = `${whole(stored.parameters)} weights · ${matrix}, ${sign} · ${trained}`;
  get("curvature-name").textContent = matrix;
  for (const name of ["allowed-retrained", "bounded"]) get(name).hidden = Boolean(stored.unknown);
  get("unbounded").hidden = !stored.unknown;
  put("parameters", stored.parameters, whole(stored.parameters));
  get("thinning").textContent = data.thinning;
  get("thinning").hidden = !data.thinning;
  showNotes();
  showLayers();
  showAssumptions();
  for (const id of ["target", "epsilon", "weights", "curvature"]) get(id).addEventListener("input", show);
  get("reset").addEventListener("click", () => {
    for (const id of ["epsilon", "weights", "curvature"]) get(id).value = 0;
    get("epsilon").focus();
    show();
  });
  new ResizeObserver(show).observe(get("crossing"));
}

start();
