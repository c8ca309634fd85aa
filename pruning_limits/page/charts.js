// Figures in SVG. One scale of sparsity serves all: logarithmic in the kept fraction, from 0 % on the left.

const TICKS = [0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999, 0.2, 0.8, 0.95, 0.98, 0.995, 0.998, 0.9995, 0.9998];
const TICK_ROOM = 40;
const DIGIT = 7;

function shape(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const widthOf = (holder) => Math.max(240, holder.clientWidth);
const path = (points) => points.map(([x, y], n) => `${n ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");

/** Smallest kept fraction on the axes: a power of ten below all answers, so that it rarely moves. */
function leastKept(...answers) {
  const known = answers.flatMap(({ sparsity, retrained, lower, upper }) => [sparsity, retrained, lower, upper]);
  const kept = known.map((value) => 1 - value).filter((value) => value > 0); // null, where unknown, keeps all
  return 10 ** Math.max(-9, Math.floor(Math.log10(0.7 * Math.min(0.1, ...kept))));
}

/** Place of a sparsity on an axis of a width, within its ends. */
function sparsityScale(least, width) {
  const end = -Math.log10(least);
  const place = (sparsity) => (width * Math.min(end, -Math.log10(Math.max(1 - sparsity, 1e-300)))) / end;
  return Object.assign(place, { least });
}

/** Places and labels of ticks, the most important first, as many as have room. */
function sparsityTicks(place, width) {
  const marks = [];
  for (const tick of TICKS) {
    const [x, label] = [place(tick), `${Number((100 * tick).toFixed(6))}%`];
    const apart = ([other, { length }]) => Math.abs(other - x) > (DIGIT * (length + label.length)) / 2 + 11;
    if (tick <= 1 - place.least * 0.999 && x <= width && marks.every(apart)) marks.push([x, label]);
  }
  return marks;
}

function marker(kind, x, y) {
  const outline = {
    predicted: "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0",
    measured: "M0-6 6 5H-6z",
    retrained: "M0-7 7 0 0 7-7 0z",
  };
  return shape("path", { class: `point ${kind}`, d: outline[kind], transform: `translate(${x} ${y})` });
}

function draw(holder, width, height, description, children) {
  holder.setAttribute("aria-label", description);
  holder.replaceChildren(shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...children));
}

/** Achievable, open and infeasible sparsities on one line, with the predictions, the measurement and the target. */
function drawLine(holder, answer, highest, target, least, description) {
  const [width, left, right, top, bottom] = [widthOf(holder), 14, 22, 26, 78];
  const place = sparsityScale(least, width - left - right);
  const at = (sparsity) => left + place(sparsity);
  const end = width - right;
  const zones = [
    ["achievable", left, at(answer.lower)],
    ["open", at(answer.lower), answer.unknown ? end : at(highest)],
  ];
  if (!answer.unknown) zones.push(["infeasible", at(highest), end]);
  const parts = [
    shape(
      "pattern",
      { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      shape("path", { class: "hatch", d: "M0 0V8" }),
    ),
  ];
  for (const [status, from, to] of zones) {
    parts.push(
      shape("rect", { class: `zone ${status}`, x: from, y: top, width: Math.max(0, to - from), height: bottom - top }),
    );
    if (to - from > 7 * status.length + 12) {
      parts.push(shape("text", { class: "name", x: from + 6, y: bottom - 8 }, status));
    }
  }
  parts.push(shape("path", { class: "axis", d: `M${left} ${bottom}H${end}` }));
  for (const [x, label] of sparsityTicks(place, end - left)) {
    parts.push(shape("path", { class: "axis", d: `M${left + x} ${bottom}v5` }));
    parts.push(shape("text", { x: left + x, y: bottom + 18, "text-anchor": "middle" }, label));
  }
  const middle = top + 17;
  const [low, high] = answer.interval.map(at);
  const goal = at(target);
  parts.push(
    shape("path", { class: "line target", d: `M${goal} ${top - 6}V${bottom}` }),
    shape(
      "text",
      {
        class: "strong",
        x: goal,
        y: top - 11,
        "text-anchor": goal < 60 ? "start" : goal > width - 70 ? "end" : "middle",
      },
      `target ${(100 * target).toFixed(1)}%`,
    ),
    shape("path", { class: "whisker", d: `M${low} ${middle - 7}v14m0-7H${high}m0-7v14` }),
  );
  if (answer.achieved !== null) parts.push(marker("measured", at(answer.achieved), middle));
  if (answer.retrained !== null) parts.push(marker("retrained", at(answer.retrained), middle));
  parts.push(marker("predicted", at(answer.sparsity), middle));
  draw(holder, width, bottom + 40, description, [
    ...parts,
    shape("text", { x: end, y: bottom + 36, "text-anchor": "end" }, "sparsity, removed fraction of the weights"),
  ]);
}

const POWERS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function power(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => POWERS[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** A frame with logarithmic grid: places of x and y, the parts drawn so far. */
function frame(width, height, place, ticks, [yLow, yHigh], xName, yName) {
  const [left, right, top, bottom] = [46, 22, 24, 44];
  const [inner, tall] = [width - left - right, height - top - bottom];
  const [from, to] = [Math.log10(yLow), Math.log10(yHigh)];
  const y = (value) =>
    top + tall * Math.min(1.0, Math.max(0, (to - Math.log10(Math.max(value, 1e-300))) / (to - from)));
  const parts = [];
  const stride = Math.ceil((Math.floor(to) - Math.ceil(from) + 1) / (tall / 28)) || 1;
  const levels = [];
  for (let exponent = Math.ceil(from); exponent <= to; exponent += stride)
    levels.push([10 ** exponent, power(exponent)]);
  if (levels.length < 3) {
    levels.length = 0;
    for (let exponent = Math.floor(from); exponent <= to; exponent += 1) {
      for (const lead of [1, 2, 5])
        levels.push([lead * 10 ** exponent, String(Number((lead * 10 ** exponent).toPrecision(1)))]);
    }
  }
  for (const [level, label] of levels.filter(([one]) => one >= yLow * 0.999 && one <= yHigh * 1.001)) {
    parts.push(shape("path", { class: "grid", d: `M${left} ${y(level)}h${inner}` }));
    parts.push(shape("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, label));
  }
  for (const [x, label] of ticks(inner)) {
    parts.push(shape("path", { class: "grid", d: `M${left + x} ${top}v${tall}` }));
    parts.push(shape("text", { x: left + x, y: top + tall + 17, "text-anchor": "middle" }, label));
  }
  parts.push(
    shape("path", { class: "axis", d: `M${left} ${top}v${tall}h${inner}` }),
    shape("text", { x: left - 40, y: 13 }, yName),
    shape("text", { x: left + inner, y: top + tall + 36, "text-anchor": "end" }, xName),
  );
  return { parts, x: (value) => left + place(inner)(value), y, base: top + tall, top };
}

/** R against sparsity: of the network, and the largest that each curvature allows. */
function drawCrossing(holder, answer, least, description) {
  const [width, height] = [widthOf(holder), 320];
  const { curve, epsilon } = answer;
  const seen = curve.sparsity.map((s, n) => [s, Math.sqrt(curve.squared[n])]).filter(([, norm]) => norm > 0);
  const largest = seen.at(-1)[1];
  const within = seen.filter(([s]) => s > 0.03 && 1 - s >= least).map(([, norm]) => norm);
  const ends = [Math.max(1e-3 * largest, Math.min(...within, largest)), 2 * largest];
  const place = (inner) => sparsityScale(least, inner);
  const ticks = (inner) => sparsityTicks(place(inner), inner);
  const { parts, x, y } = frame(width, height, place, ticks, ends, "sparsity", "R, norm of the removed weights");
  const stride = Math.max(1, Math.floor(seen.length / 600));
  const network = seen.filter(([s, norm], n) => n % stride === 0 && norm >= ends[0] && 1 - s >= least);
  const norms = Array.from({ length: 90 }, (_, n) => ends[0] * (ends[1] / ends[0]) ** (n / 89));
  const allowed = (estimate, negative) =>
    norms.map((norm) => {
      const scale = (2 * epsilon) / norm ** 2;
      return [combined(estimate, (measure) => removableFraction(measure, scale, negative)[0]), norm];
    });
  const curves = [
    ["network", network],
    ["predicted", allowed(answer.hessian, answer.settings.negative)],
  ];
  if (answer.ggn !== null) curves.splice(1, 0, ["retrained", allowed(answer.ggn, "clip")]);
  for (const [kind, points] of curves) {
    const inside = points.filter(([s]) => 1 - s >= least).map(([s, norm]) => [x(s), y(norm)]);
    parts.push(shape("path", { class: `line ${kind}`, d: path(inside) }));
  }
  for (const kind of answer.ggn === null ? ["predicted"] : ["retrained", "predicted"]) {
    const sparsity = kind === "predicted" ? answer.sparsity : answer.retrained;
    parts.push(marker(kind, x(sparsity), y(Math.sqrt(squaredNorm(curve, sparsity)))));
  }
  draw(holder, width, height, description, parts);
}

const BINS_PER_DECADE = 3;

/** Shares of positive and of negative eigenvalues by size, and the scale at the limit. */
function drawSpectrum(holder, answer, scale, description) {
  const [width, height] = [widthOf(holder), 320];
  const { measure } = answer.hessian;
  const pairs = measure.rules.flatMap(({ nodes, weights }) =>
    nodes.map((node, n) => [node, weights[n] / measure.rules.length]),
  );
  const largest = Math.max(...pairs.map(([node]) => Math.abs(node))) || 1;
  const bin = (size) => Math.floor(BINS_PER_DECADE * Math.log10(Math.max(size, 1e-12 * largest)));
  const shares = new Map();
  for (const [node, weight] of pairs) {
    const key = bin(Math.abs(node));
    if (!shares.has(key)) shares.set(key, [0, 0]);
    shares.get(key)[node < 0 ? 1 : 0] += weight;
  }
  const shown = [...shares.keys(), ...(scale > 0 && scale < Infinity ? [bin(scale)] : [])];
  const [from, to] = [Math.min(...shown) / BINS_PER_DECADE - 0.1, (Math.max(...shown) + 1) / BINS_PER_DECADE + 0.1];
  const place = (inner) => (logarithm) => (inner * (logarithm - from)) / (to - from);
  const ticks = (inner) => {
    const stride = Math.ceil(((to - from) * TICK_ROOM) / inner);
    const marks = [];
    for (let exponent = Math.ceil(from); exponent <= to; exponent += 1) {
      if (exponent % stride === 0) marks.push([place(inner)(exponent), power(exponent)]);
    }
    return marks;
  };
  const floor = Math.max(0.5 / measure.dimension, 1e-12);
  const yName = "share of eigenvalues per third of a decade";
  const { parts, x, y, base, top } = frame(
    width,
    height,
    place,
    ticks,
    [floor, 1],
    "|λ|, objective per squared weight",
    yName,
  );
  for (const [key, both] of shares) {
    const left = x(key / BINS_PER_DECADE);
    const wide = x((key + 1) / BINS_PER_DECADE) - left;
    both.forEach((share, sign) => {
      if (share <= floor) return;
      const alone = both[1 - sign] <= floor;
      const box = {
        class: `bar ${sign ? "negative" : "positive"}`,
        x: left + (alone || !sign ? 0.08 : 0.54) * wide,
        y: y(share),
        width: (alone ? 0.84 : 0.38) * wide,
        height: base - y(share),
      };
      parts.push(shape("rect", box));
    });
  }
  if (scale > 0 && scale < Infinity) {
    const place = x(Math.log10(scale));
    parts.push(shape("path", { class: "line scale", d: `M${place} ${top}V${base}` }));
  }
  draw(holder, width, height, description, parts);
}
