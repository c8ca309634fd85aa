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

/** Smallest kept fraction on the axes: a power of ten below all sparsities, so that it rarely moves. */
function leastKept(...sparsities) {
  const kept = sparsities.map((value) => 1 - value).filter((value) => value > 0); // null, where unknown, keeps all
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
    const [x, label] = [place(tick), `${Number((100 * tick).toFixed(6))} %`];
    const apart = ([other, { length }]) => Math.abs(other - x) > (DIGIT * (length + label.length)) / 2 + 11;
    if (tick <= 1 - place.least * 0.999 && x <= width && marks.every(apart)) marks.push([x, label]);
  }
  return marks;
}

/** The mark of a rung. */
function marker(rung, x, y) {
  const outline = {
    "one-shot": "M0-6 6 5H-6z",
    "re-tuned": "M-5-5H5V5H-5z",
    "re-trained": "M0-7 7 0 0 7-7 0z",
    ggn: "M0-7 7 0 0 7-7 0z",
    bound: "M-2.5-7.5h5v15h-5z",
    formula: "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0",
  };
  return shape("path", { class: `point ${rung}`, d: outline[rung], transform: `translate(${x} ${y})` });
}

function draw(holder, width, height, description, children) {
  holder.setAttribute("aria-label", description);
  holder.replaceChildren(shape("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...children));
}

const POWERS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

function power(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => POWERS[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** A logarithmic axis between two ends: the share of the way up of a value, and levels with their labels. */
function logarithmic([low, high], most) {
  const [from, to] = [Math.log10(low), Math.log10(high)];
  const share = (value) => Math.min(1, Math.max(0, (Math.log10(Math.max(value, 1e-300)) - from) / (to - from)));
  const stride = Math.ceil((Math.floor(to) - Math.ceil(from) + 1) / most) || 1;
  const levels = [];
  for (let exponent = Math.ceil(from); exponent <= to; exponent += stride)
    levels.push([10 ** exponent, power(exponent)]);
  if (levels.length < 3) {
    levels.length = 0;
    for (let exponent = Math.floor(from); exponent <= to; exponent += 1) {
      for (const lead of [1, 2, 5]) levels.push([lead * 10 ** exponent, general(lead * 10 ** exponent, 1)]);
    }
  }
  return { share, levels: levels.filter(([level]) => level >= low * 0.999 && level <= high * 1.001) };
}

/** A linear axis between two ends, likewise; labels are written by a function of the value. */
function linear([low, high], most, label) {
  const share = (value) => Math.min(1, Math.max(0, (value - low) / (high - low)));
  const least = (high - low) / most;
  const unit = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((lead) => lead * unit).find((size) => size >= least * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const levels = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n += 1)
    levels.push([n * step, label(n * step, digits)]);
  return { share, levels };
}

const MARGINS = { left: 52, right: 22, bottom: 44 };

/** A frame with its grid: places of x and y, the parts drawn so far. */
function frame(width, height, top, place, ticks, axis, xName, yName) {
  const { left, right, bottom } = MARGINS;
  const [inner, tall] = [width - left - right, height - top - bottom];
  const y = (value) => top + tall * (1 - axis.share(value));
  const parts = [];
  for (const [level, label] of axis.levels) {
    parts.push(shape("path", { class: "grid", d: `M${left} ${y(level)}h${inner}` }));
    parts.push(shape("text", { x: left - 6, y: y(level) + 4, "text-anchor": "end" }, label));
  }
  for (const [x, label] of ticks(inner)) {
    parts.push(shape("path", { class: "grid", d: `M${left + x} ${top}v${tall}` }));
    parts.push(shape("text", { x: left + x, y: top + tall + 17, "text-anchor": "middle" }, label));
  }
  parts.push(
    shape("path", { class: "axis", d: `M${left} ${top}v${tall}h${inner}` }),
    shape("text", { x: left + inner, y: top + tall + 36, "text-anchor": "end" }, xName),
  );
  const title = shape("text", { class: "label", x: 6, y: top - 11 }, yName);
  return { parts, title, x: (value) => left + place(inner)(value), y, base: top + tall, top };
}

const FALLS = 20;

/** What the chart of the rungs shows: points with their errors, what is allowed, the axis, titles. */
function chartOf(answer) {
  const { evidence, settings, allowed } = answer;
  const { dense, measured } = evidence;
  if (measured && dense.metric !== null) {
    const { metric, max_drop: maxDrop } = settings;
    const points = evidence.points
      .filter(({ drop }) => drop !== null)
      .map(({ sparsity, drop, drop_error: error }) => ({ sparsity, y: dense.metric - drop, error: 2 * (error ?? 0) }));
    const all = [{ sparsity: evidence.already_removed, y: dense.metric, error: 0 }, ...points];
    const [low, high] = [Math.min, Math.max].map((most) => most(...all.map(({ y }) => y)));
    const lowest = maxDrop === null ? low : Math.max(low, dense.metric - FALLS * maxDrop);
    const pad = 0.08 * (high - lowest || 0.1);
    const name = metric[0].toUpperCase() + metric.slice(1);
    return {
      points: all,
      allowed: maxDrop === null ? null : dense.metric - maxDrop,
      ends: [lowest - pad, metric === "accuracy" ? Math.min(1, high + pad) : high + pad],
      isMetric: true,
      name: metric === "accuracy" ? "accuracy in %" : metric,
      title: `${name} of the pruned network, and where the rungs are`,
      curve: "measured networks, pruned and nothing else; bars: two standard errors",
    };
  }
  const points = pointsOf(evidence)
    .filter(({ rise }) => rise > 0)
    .map(({ sparsity, rise, rise_error: error }) => ({ sparsity, y: rise, error: 2 * (error ?? 0) }));
  const { epsilon } = allowed;
  const [least, most] = [Math.min, Math.max].map((choose) => choose(epsilon, ...points.map(({ y }) => y)));
  const ends = [Math.min(epsilon / 30, Math.max(least / 1.5, 1e-4 * epsilon)), Math.max(3 * epsilon, 1.5 * most)];
  const curve = measured
    ? "measured networks, pruned and nothing else"
    : evidence.points.length
      ? "measured rises, scaled as those of the quadratic model"
      : "quadratic model, not measured";
  return {
    points,
    allowed: epsilon,
    ends: [ends[0], Math.min(ends[1], 1e4 * epsilon)],
    isMetric: false,
    name: `rise of the ${settings.criterion}`,
    title: `Rise of the ${settings.criterion} by pruning, and where the rungs are`,
    curve,
  };
}

const [LANE, LINE] = [20, 15];
const roomOf = (text) => 6.9 * text.length;

/** A mark, its interval and its label in a lane of its own: beside the interval where there is room, else above. */
function lane(top, ends, kind, [low, middle, high], label) {
  const [left, right] = ends;
  const room = roomOf(label) + 14;
  const sides = [
    [high, high + room <= right, { x: high + 12, "text-anchor": "start" }],
    [low, low - room >= left, { x: low - 12, "text-anchor": "end" }],
  ];
  const beside = sides.find(([, fits]) => fits);
  const y = top + LANE / 2 + (beside ? 0 : LINE);
  const half = roomOf(label) / 2;
  const above = { x: Math.max(left + half, Math.min(middle, right - half)), "text-anchor": "middle" };
  const place = beside ? { ...beside[2], y: y + 4 } : { ...above, y: y - LINE + 4 };
  const parts = [shape("text", { ...place, class: kind === "target" ? "label strong" : "label" }, label)];
  if (kind !== "target") {
    parts.push(shape("path", { class: `whisker ${kind}`, d: `M${low} ${y - 5}v10m0-5H${high}m0-5v10` }));
    parts.push(marker(kind, middle, y));
  }
  return { parts, y, next: top + LANE + (beside ? 0 : LINE) };
}

/** The rungs and the target in lanes above the curve of what pruning loses, on one axis of sparsity. */
function drawRungs(holder, answer, chart, target, least, description) {
  const width = widthOf(holder);
  const ends = [MARGINS.left, width - MARGINS.right];
  const place = (inner) => sparsityScale(least, inner);
  const at = (sparsity) => MARGINS.left + place(ends[1] - ends[0])(sparsity);
  const rungs = answer.answers.filter(({ sparsity }) => sparsity !== null);
  const lanes = [];
  let top = 2;
  const add = (kind, places, label) => {
    lanes.push({ kind, x: places[1], ...lane(top, ends, kind, places, label) });
    top = lanes.at(-1).next;
  };
  for (const { rung, sparsity, low, high } of rungs)
    add(rung, [low, sparsity, high].map(at), `${NAMES[rung]} ${percent(sparsity)}`);
  add("target", Array(3).fill(at(target)), `your target ${percent(target)}`);
  top += 26;
  const tall = Math.max(190, Math.min(260, 0.4 * width));
  const [most, scale] = [tall / 28, answer.settings.metric === "accuracy" ? 100 : 1];
  const label = (value, digits) => fixed(scale * value, Math.max(0, digits - (scale === 100 ? 2 : 0)));
  const axis = chart.isMetric ? linear(chart.ends, most, label) : logarithmic(chart.ends, most);
  const ticks = (inner) => sparsityTicks(place(inner), inner);
  const height = top + tall + MARGINS.bottom;
  const { parts, title, x, y, base } = frame(width, height, top, place, ticks, axis, "sparsity", chart.name);
  for (const { kind, x: where, y: from } of lanes) {
    const look = kind === "target" ? "line target" : `drop ${kind}`;
    parts.push(shape("path", { class: look, d: `M${where} ${from + 8}V${base}` }));
  }
  if (chart.allowed !== null)
    parts.push(shape("path", { class: "line allowed", d: `M${ends[0]} ${y(chart.allowed)}H${ends[1]}` }));
  const inside = chart.points.filter(({ sparsity }) => 1 - sparsity >= least);
  const curve = path(inside.map((point) => [x(point.sparsity), y(point.y)]));
  parts.push(shape("path", { class: `line curve ${answer.evidence.measured ? "" : "model"}`, d: curve }));
  for (const point of inside) {
    const [px, py] = [x(point.sparsity), y(point.y)];
    const isBelow = chart.isMetric && point.y < chart.ends[0];
    if (point.error && !isBelow)
      parts.push(
        shape("path", { class: "error", d: `M${px} ${y(point.y - point.error)}V${y(point.y + point.error)}` }),
      );
    parts.push(
      isBelow
        ? shape("path", { class: "dot", d: `M${px - 4.5} ${py - 8}h9l-4.5 8z` })
        : shape("circle", { class: "dot", cx: px, cy: py, r: 3.5 }),
    );
  }
  draw(holder, width, height, description, [...parts, title, ...lanes.flatMap((row) => row.parts)]);
}

/** R against sparsity: of the network, and the largest that each curvature allows. */
function drawCrossing(holder, answer, least, description) {
  const [width, height] = [widthOf(holder), 320];
  const { evidence, settings } = answer;
  const { curve, hessian, ggn } = evidence;
  const { epsilon } = answer.allowed;
  const seen = curve.sparsity.map((s, n) => [s, Math.sqrt(curve.squared[n])]).filter(([, norm]) => norm > 0);
  const largest = seen.at(-1)[1];
  const within = seen.filter(([s]) => s > 0.03 && 1 - s >= least).map(([, norm]) => norm);
  const ends = [Math.max(1e-3 * largest, Math.min(...within, largest)), 2 * largest];
  const place = (inner) => sparsityScale(least, inner);
  const ticks = (inner) => sparsityTicks(place(inner), inner);
  const axis = logarithmic(ends, (height - 68) / 28);
  const name = "R, norm of the removed weights";
  const { parts, title, x, y } = frame(width, height, 24, place, ticks, axis, "sparsity", name);
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
    ["formula", allowed(hessian, settings.negative)],
  ];
  if (ggn !== null) curves.splice(1, 0, ["ggn", allowed(ggn, "clip")]);
  for (const [kind, points] of curves) {
    const inside = points.filter(([s]) => 1 - s >= least).map(([s, norm]) => [x(s), y(norm)]);
    parts.push(shape("path", { class: `line ${kind}`, d: path(inside) }));
  }
  for (const kind of ggn === null ? ["formula"] : ["ggn", "formula"]) {
    const sparsity = kind === "formula" ? answer.sparsity : ggnLimit(answer);
    parts.push(marker(kind, x(sparsity), y(Math.sqrt(squaredNorm(curve, sparsity)))));
  }
  draw(holder, width, height, description, [...parts, title]);
}

const BINS_PER_DECADE = 3;

/** Shares of positive and of negative eigenvalues by size, and the scale at the limit. */
function drawSpectrum(holder, answer, scale, description) {
  const [width, height] = [widthOf(holder), 320];
  const { measure } = answer.evidence.hessian;
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
  const axis = logarithmic([floor, 1], (height - 68) / 28);
  const xName = `|λ|, ${answer.settings.criterion} per squared weight`;
  const { parts, title, x, y, base, top } = frame(width, height, 24, place, ticks, axis, xName, yName);
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
  draw(holder, width, height, description, [...parts, title]);
}
