// Fills the page from its data, and again whenever a slider moves.

const data = JSON.parse(document.getElementById("data").textContent);
const stored = data.limit;
const get = (id) => document.getElementById(id);
const short = (value) => (value === null ? "not known" : String(Number(value.toPrecision(4))));

const COLUMNS = {
  sparsity: "The removed share of the prunable weights.",
  interval:
    "Pruned, nothing else: between the measured sparsities that pass and the first that fails, widened by two " +
    "standard errors where a metric decides. Re-trained, where it is a forecast: 9 of 10 networks like those that it " +
    "was calibrated on end within. The others: numerical error of the computation, which does not say how far the " +
    "truth is.",
  "how it is known":
    "Measured with forward passes, forecast from networks that were trained again, or computed from the curvature and " +
    "the sizes of the weights.",
};
const WHY = {
  dense: "The network as it is, before pruning.",
  "one-shot": "The smallest weights are set to zero, and nothing else is done.",
  "re-tuned":
    "The weights are removed in stages, and the kept ones adjusted on few samples each time, which takes about half an " +
    "epoch of training.",
  "re-trained":
    "The kept weights are trained with the whole recipe once more: a forecast from what was measured here and from " +
    "networks that were trained so; the formula with the Gauss-Newton matrix where there is no forecast.",
  bound: "Where the quadratic model of the loss holds, no values of the kept weights make up for what is removed.",
  formula:
    "How far pruning gets by the spectrum of the curvature and the size of what is removed, whatever its direction " +
    "(Zhang et al., NeurIPS 2024).",
};

function tag(name, properties, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function put(id, value, text) {
  get(id).value = value ?? "";
  get(id).textContent = text;
}

const CONDITIONS = ["epsilon", "drop", "weights", "curvature"];
const factor = (id) => 10 ** Number(get(id).value);
const isMoved = (...ids) => ids.some((id) => Number(get(id).value) !== 0);
const target = () => 1 - Number((10 ** -Number(get("target").value)).toPrecision(3));

/** The stored limit, or the limit under the conditions that the sliders tell. */
function ask() {
  if (!isMoved(...CONDITIONS)) return stored;
  return whatIf(stored, {
    epsilon: isMoved("epsilon") ? stored.allowed.epsilon * factor("epsilon") : null,
    maxDrop: isMoved("drop") ? stored.settings.max_drop * factor("drop") : null,
    weightScale: factor("weights"),
    curvatureScale: factor("curvature"),
  });
}

function showControls() {
  const scale = (id) => `× ${Number(factor(id).toPrecision(3))}`;
  const texts = {
    target: percent(target()),
    epsilon: short(stored.allowed.epsilon * factor("epsilon")),
    drop: stored.settings.max_drop === null ? "" : dropText(stored, stored.settings.max_drop * factor("drop")),
    weights: scale("weights"),
    curvature: scale("curvature"),
  };
  for (const [id, text] of Object.entries(texts)) {
    get(`${id}-value`).textContent = text;
    get(id).setAttribute("aria-valuetext", text);
  }
  get("reset").disabled = !isMoved(...CONDITIONS);
  get("stale").hidden = !isMoved(...CONDITIONS);
}

/** A word with its explanation, which shows while the word has focus or the pointer. */
function term(word, why) {
  const id = `why-${word.replace(/[^a-z]/g, "")}`;
  const button = tag("button", { type: "button", className: "term" }, word);
  button.setAttribute("aria-describedby", id);
  return [button, tag("span", { id, hidden: true }, why)];
}

function rungMark(rung) {
  const svg = shape("svg", { class: "mark", viewBox: "-8 -8 16 16", "aria-hidden": "true" });
  if (rung !== "dense") svg.append(marker(rung, 0, 0));
  return svg;
}

const CELLS = ["sparsity", "interval", "metric", "how"];

/** The ladder with empty cells, a row for the dense network and one for every rung. */
function layLadder() {
  const columns = CELLS.filter((column) => column !== "metric" || stored.settings.metric !== null);
  const body = ["dense", ...stored.answers.map(({ rung }) => rung)].map((rung, n) => {
    const name = tag("th", { scope: "row", role: "rowheader" }, rungMark(rung), ...term(data.rows[n][0], WHY[rung]));
    const cells = columns.map((className) => tag("td", { className, role: "cell" }));
    for (const cell of cells) cell.dataset.unit = cell.className === "metric" ? `${stored.settings.metric} ` : "";
    return tag("tr", { role: "row", className: rung }, name, ...cells);
  });
  get("ladder-rows").append(...body);
}

function showLadder(answer) {
  const lines = answer === stored ? data.rows : rows(answer);
  lines.forEach(([, ...texts], n) => {
    for (const cell of get("ladder-rows").rows[n].querySelectorAll("td")) {
      cell.textContent = texts[CELLS.indexOf(cell.classList[0])];
      cell.classList.toggle("none", ["", NONE].includes(cell.textContent));
    }
  });
}

function showHead() {
  const names = ["sparsity", "interval", ...(stored.settings.metric === null ? [] : ["metric"]), "how it is known"];
  const head = names.map((name) => {
    const properties = { scope: "col", role: "columnheader", className: name === "how it is known" ? "how" : name };
    return name === "metric"
      ? tag("th", properties, stored.settings.metric)
      : tag("th", properties, ...term(name, COLUMNS[name]));
  });
  get("ladder-head").append(tag("td", { role: "cell" }), ...head);
}

function showVerdict(answer) {
  const [verdict, reason] = targetLine(answer, target());
  get("verdict").className = `verdict ${judged(answer, target()).status}`;
  get("verdict").replaceChildren(tag("strong", {}, verdict), ` ${reason}`);
}

function showFigures(answer) {
  const { sparsity, allowed, evidence } = answer;
  const least = leastKept(target(), ...[...stored.answers, ...answer.answers].map((rung) => rung.sparsity));
  const list = answer.answers.map((rung) =>
    rung.sparsity === null ? `${NAMES[rung.rung]} unknown` : `${NAMES[rung.rung]} ${percent(rung.sparsity)}`,
  );
  const chart = chartOf(answer);
  get("rungs-title").textContent = chart.title;
  get("curve-name").textContent = chart.curve;
  get("below").hidden = !(chart.isMetric && chart.points.some(({ y }) => y < chart.ends[0]));
  drawRungs(get("rungs"), answer, chart, target(), least, `${chart.title}; ${list.join(", ")}.`);
  const along = `the paper's formula ${percent(sparsity)}`;
  const names = evidence.ggn === null ? along : `${along}, with the GGN ${percent(ggnLimit(answer))}`;
  drawCrossing(get("crossing"), answer, least, `Norm R against sparsity; the curves cross at ${names}.`);
  const { hessian, ggn, curve, parameters } = evidence;
  get("carried").hidden = hessian.growth === 1 && (ggn === null || ggn.growth === 1);
  put("dimension", parameters * (1 - sparsity), whole(parameters * (1 - sparsity)));
  const scale = (2 * allowed.epsilon) / squaredNorm(curve, sparsity);
  const size = `Shares of eigenvalues by size on logarithmic axes; the scale c at the limit is ${short(scale)}.`;
  drawSpectrum(get("spectrum"), answer, scale, size);
}

function show() {
  showControls();
  try {
    const answer = ask();
    get("allowed").textContent = answer === stored ? data.allowed : allowedText(answer);
    showLadder(answer);
    showVerdict(answer);
    showFigures(answer);
    get("failure").hidden = true;
  } catch (error) {
    get("failure").textContent =
      `No answer under these conditions: ${error.message}. The numbers are the last ones found.`;
    get("failure").hidden = false;
  }
}

function showLayers() {
  const least = leastKept(...stored.layer_table.map(({ sparsity }) => sparsity));
  const place = sparsityScale(least, 100);
  get("layers-note").textContent = stored.layer_table.length
    ? `What global magnitude pruning removes at ${percent(stored.sparsity)}, the paper's formula, whatever the ` +
      "sliders say. Bars are logarithmic in the kept fraction."
    : "This limit holds no table of layers.";
  get("layers-region").hidden = stored.layer_table.length === 0;
  for (const { name, sparsity, weights, norm, trace, trace_error: error } of stored.layer_table) {
    const bar = tag("div", {});
    bar.style.width = `${place(sparsity)}%`;
    const track = tag("div", { className: "track" }, bar);
    const removed = tag("div", { className: "removed" }, track, tag("span", {}, percent(sparsity)));
    const cells = [removed, whole(weights), short(norm), `${short(trace)} ± ${short(error)}`];
    get("layers").append(tag("tr", {}, tag("th", { scope: "row" }, name), ...cells.map((cell) => tag("td", {}, cell))));
  }
}

function showNotes() {
  for (const note of stored.notes) get("notes").append(tag("li", {}, note));
  get("notes").append(tag("li", { className: stored.status.includes("not settled") ? "" : "fine" }, stored.status));
}

function showBehind() {
  for (const [title, lines] of Object.entries(data.behind)) {
    const list = lines.map(([name, text]) => tag("div", {}, tag("dt", {}, name), tag("dd", {}, text)));
    get("behind").append(tag("div", {}, tag("h3", {}, title), tag("dl", {}, ...list)));
  }
}

/** Explanations of the words of the ladder: beneath the word, within the window, gone with Escape. */
function showTips() {
  const tip = get("tip");
  const hide = () => (tip.hidden = true);
  const open = ({ target: word }) => {
    if (!word.matches?.(".term")) return;
    tip.textContent = get(word.getAttribute("aria-describedby")).textContent;
    tip.hidden = false;
    const { left, bottom } = word.getBoundingClientRect();
    const most = document.documentElement.clientWidth - tip.offsetWidth - 12;
    tip.style.left = `${window.scrollX + Math.max(12, Math.min(left, most))}px`;
    tip.style.top = `${window.scrollY + bottom + 6}px`;
  };
  for (const event of ["focusin", "mouseover"]) document.addEventListener(event, open);
  document.addEventListener("focusout", hide);
  document.addEventListener("mouseout", ({ target: word }) => {
    if (word.matches?.(".term") && word !== document.activeElement) hide();
  });
  document.addEventListener("keydown", ({ key }) => {
    if (key === "Escape") hide();
  });
}

/** Open what is folded while the page is printed. */
function unfoldForPrint() {
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
    show();
  });
  window.addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
  });
}

function start() {
  const { settings, evidence } = stored;
  const { parameters } = evidence;
  get("title").textContent = data.title;
  const isByDrop = settings.max_drop !== null;
  get("by-rise").hidden = isByDrop;
  get("by-drop").hidden = !isByDrop;
  for (const node of document.querySelectorAll(".criterion")) node.textContent = settings.criterion;
  for (const node of document.querySelectorAll(".metric")) node.textContent = settings.metric;
  get("curvature-name").textContent = settings.curvature === "hessian" ? "Hessian" : "GGN";
  get("allowed-ggn").hidden = evidence.ggn === null;
  put("parameters", parameters, whole(parameters));
  const fewest = 10 ** Math.floor(Math.log10(100 / parameters) + 1e-9);
  get("target").max = -Math.log10(Math.max(1e-6, Math.min(1e-3, fewest)));
  get("thinning").textContent = data.thinning;
  get("thinning").hidden = !data.thinning;
  showHead();
  layLadder();
  showNotes();
  showLayers();
  showBehind();
  showTips();
  unfoldForPrint();
  for (const id of ["target", ...CONDITIONS]) get(id).addEventListener("input", show);
  get("reset").addEventListener("click", () => {
    for (const id of CONDITIONS) get(id).value = 0;
    get("target").focus();
    show();
  });
  for (const field of document.querySelectorAll("input[data-rows]")) {
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const row of get(field.dataset.rows).rows)
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
  }
  const observer = new ResizeObserver(show);
  for (const id of ["rungs", "crossing"]) observer.observe(get(id));
}

start();
