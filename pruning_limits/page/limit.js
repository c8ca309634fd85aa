// The numbers of PruningLimit.what_if, from the JSON form of a limit.

const ETA = 0.05;
const OUTSIDE_BENCH = "outside the bench";
const WIDER = 2;
const CROSS_ENTROPY = "cross-entropy";
const USUAL = { samples: 2048, passes: 2 };

/** Root of f between two signs by Brent's method, step for step as in scipy.optimize.brentq. */
function brent(f, low, high, xtol, rtol) {
  let [before, here, other] = [low, high, 0];
  let [fBefore, fHere, fOther] = [f(before), f(here), 0];
  let [lastStep, step] = [0, 0];
  if (fBefore === 0) return before;
  if (fHere === 0) return here;
  if (!(Math.sign(fBefore) * Math.sign(fHere) < 0)) throw new Error("no root between the ends");
  for (let count = 0; count < 100; count += 1) {
    if (fBefore !== 0 && fHere !== 0 && fBefore < 0 !== fHere < 0) {
      [other, fOther] = [before, fBefore];
      lastStep = step = here - before;
    }
    if (Math.abs(fOther) < Math.abs(fHere)) {
      [before, here, other] = [here, other, here];
      [fBefore, fHere, fOther] = [fHere, fOther, fHere];
    }
    const delta = (xtol + rtol * Math.abs(here)) / 2;
    const half = (other - here) / 2;
    if (fHere === 0 || Math.abs(half) < delta) return here;
    let trial = Infinity;
    if (Math.abs(lastStep) > delta && Math.abs(fHere) < Math.abs(fBefore)) {
      if (before === other) {
        trial = (-fHere * (here - before)) / (fHere - fBefore);
      } else {
        const dBefore = (fBefore - fHere) / (before - here);
        const dOther = (fOther - fHere) / (other - here);
        trial = (-fHere * (fOther * dOther - fBefore * dBefore)) / (dOther * dBefore * (fOther - fBefore));
      }
    }
    if (2 * Math.abs(trial) < Math.min(Math.abs(lastStep), 3 * Math.abs(half) - delta)) {
      [lastStep, step] = [step, trial];
    } else {
      lastStep = step = half;
    }
    [before, fBefore] = [here, fHere];
    here += Math.abs(step) > delta ? step : Math.sign(half) * delta;
    fHere = f(here);
  }
  throw new Error("the search for a root did not end");
}

/** Linear interpolation between ascending knots, constant beyond them. */
function interpolate(x, knots, values) {
  let [low, high] = [0, knots.length - 1];
  if (x <= knots[low]) return values[low];
  if (x >= knots[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (knots[middle] <= x) low = middle;
    else high = middle;
  }
  return ((values[high] - values[low]) / (knots[high] - knots[low])) * (x - knots[low]) + values[low];
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const times = (values, factor) => values.map((value) => value * factor);

const squaredNorm = (curve, sparsity) => interpolate(sparsity, curve.sparsity, curve.squared);

/** Integral of f over a spectral measure, and its standard error over the choice of probes. */
function integrate(measure, f) {
  const probes = measure.rules.length;
  let squares = 0;
  const values = measure.rules.map(({ nodes, weights }) => {
    let total = 0;
    for (let n = 0; n < nodes.length; n += 1) {
      const value = f(nodes[n]);
      total += weights[n] * value;
      squares += (weights[n] * value * value) / probes;
    }
    return total;
  });
  const mean = sum(values) / probes;
  if (measure.exact) return [mean, 0];
  let variance = ((2 / (measure.dimension + 2)) * Math.max(0, squares - mean * mean)) / probes;
  if (probes > 1)
    variance = Math.max(variance, sum(values.map((value) => (value - mean) ** 2)) / (probes - 1) / probes);
  return [mean, Math.sqrt(variance)];
}

const positive = (x, negative) => (negative === "abs" ? Math.abs(x) : Math.max(x, 0));

/** Trace of c / (c + |H|) over D, and its standard error. */
function removableFraction(measure, scale, negative) {
  if (scale === Infinity) return [1, 0];
  const least = Math.max(scale, 2 ** -1022); // flat directions count whole at any scale
  return integrate(measure, (x) => least / (least + positive(x, negative)));
}

/** Root s of s = tr f_s(H) / D, see bounds.isotropic_limit. */
function isotropicLimit(measure, curve, epsilon, negative) {
  const fraction = (sparsity) => {
    const squared = squaredNorm(curve, sparsity);
    return removableFraction(measure, squared > 0 ? (2 * epsilon) / squared : Infinity, negative);
  };
  const excess = (sparsity) => fraction(sparsity)[0] - sparsity;
  const root = excess(1) >= 0 ? 1 : brent(excess, 0, 1, 1e-14, 1e-14);
  const step = Math.min(1e-4, (1 - root) / 2, root / 2);
  const slope = step > 0 ? (excess(root + step) - excess(root - step)) / (2 * step) : -1;
  return { sparsity: root, standardError: fraction(root)[1] / Math.max(1, -slope) };
}

const measures = (estimate) => (estimate.above === null ? [estimate.measure] : [estimate.measure, estimate.above]);

/** Geometric mean of the kept fractions that the measures give, carried to all data. */
function combined(estimate, solve) {
  const kept = measures(estimate).map((measure) => Math.max(0, 1 - solve(measure)));
  const mean = kept.reduce((product, value) => product * value, 1) ** (1 / kept.length);
  return Math.max(0, 1 - estimate.growth * mean);
}

/** The estimate with the step error of one limit, as far as measures enclose it. */
function certified(estimate, solve) {
  let error = estimate.step_error;
  if (estimate.bracket !== null) {
    const [low, high] = estimate.bracket.map(solve);
    error = estimate.growth * estimate.certain * Math.abs(high - low);
  } else if (estimate.above !== null) {
    const middle = combined(estimate, solve);
    const ends = measures(estimate).map((measure) => 1 - estimate.growth * (1 - solve(measure)));
    error = Math.max(...ends.map((end) => Math.abs(end - middle)));
  }
  return { ...estimate, step_error: error };
}

function scaledMeasure(measure, factor) {
  const rules = measure.rules.map(({ nodes, weights }) => ({ nodes: times(nodes, factor), weights }));
  return { ...measure, rules };
}

function scaledEstimate(estimate, factor) {
  const scaled = (measure) => scaledMeasure(measure, factor);
  return {
    ...estimate,
    measure: scaled(estimate.measure),
    above: estimate.above && scaled(estimate.above),
    bracket: estimate.bracket && estimate.bracket.map(scaled),
  };
}

function scaledDirections(directions, weightScale, curvatureScale) {
  const slope = (weightScale * curvatureScale) ** 2;
  return {
    ...directions,
    rules: directions.rules.map(([nodes, weights]) => [times(nodes, curvatureScale), times(weights, slope)]),
    rises: times(directions.rises, weightScale ** 2 * curvatureScale),
    squared: times(directions.squared, weightScale ** 2),
  };
}

/** Nodes, weights and rise at a sparsity: neighbouring knots mixed linearly in log(1 - s), scaled to the norm. */
function directionAt(directions, sparsity, squared) {
  const place = (s) => -Math.log(Math.max(1 - s, 1e-12));
  const places = directions.sparsities.map(place);
  const where = interpolate(place(sparsity), places, [...places.keys()]);
  const near = [...new Set([Math.floor(where), Math.ceil(where)])].filter((n) => 1 - Math.abs(n - where) > 0);
  const parts = near.map((n) => {
    const factor = ((1 - Math.abs(n - where)) * squared) / directions.squared[n];
    return {
      nodes: directions.rules[n][0],
      weights: times(directions.rules[n][1], factor),
      rise: directions.rises[n] * factor,
    };
  });
  return {
    nodes: parts.flatMap((part) => part.nodes.map((x) => Math.max(x, 0))),
    weights: parts.flatMap((part) => part.weights),
    rise: sum(parts.map((part) => part.rise)),
  };
}

/** Scale c at which ridge re-tuning of all weights just reaches epsilon, infinite where nothing needs re-tuning. */
function directionalScale({ nodes, weights, rise }, epsilon) {
  const excess = rise - epsilon;
  if (excess <= 1e-12 * epsilon) return Infinity;
  const remaining = (logarithm) => {
    const scale = Math.exp(logarithm);
    let total = 0;
    for (let n = 0; n < nodes.length; n += 1) total += weights[n] / (scale + nodes[n]);
    return rise - total / 2 - epsilon;
  };
  const top = sum(weights) / (2 * excess);
  const high = top > 0 ? Math.log(top) + 1e-6 : NaN;
  let low = high;
  while (low > -700 && remaining(low) > 0) low -= 5;
  if (!(remaining(high) >= 0 && remaining(low) <= 0)) {
    throw new Error("no re-tuning reaches this epsilon; predict again with more Lanczos steps");
  }
  return Math.exp(brent(remaining, low, high, 1e-14, 1e-14));
}

/** Root s of 1 - s = tr H / (H + c(s)) / D, see directional.directional_limit. */
function directionalLimit(measure, directions, curve, epsilon) {
  const excess = (sparsity) => {
    if (sparsity === 0) return 1;
    const scale = directionalScale(directionAt(directions, sparsity, squaredNorm(curve, sparsity)), epsilon);
    return 1 - sparsity - integrate(measure, (x) => positive(x, "clip") / (positive(x, "clip") + scale))[0];
  };
  let low = isotropicLimit(measure, curve, epsilon, "clip").sparsity;
  let high = Math.min(1, low + excess(low));
  if (high < low) [low, high] = [0, low];
  else if (excess(high) > 0) high = 1;
  return excess(high) >= 0 ? high : brent(excess, low, high, 1e-4, 4 * Number.EPSILON);
}

/** Directional limit, taken into [0, 1], plus the kinematic window at 5 %, at most 1. */
function withWindow(limit, dimension) {
  const directional = Math.min(1, Math.max(0, limit));
  const log = -Math.log(ETA);
  const delta = directional * dimension;
  const width = (2 / 3) * log + Math.sqrt((4 / 9) * log ** 2 + 4 * log * Math.min(delta, dimension - delta));
  return Math.min(1, directional + width / dimension);
}

/** The evidence of scaled weights and a scaled curvature, see Evidence.scaled. */
function scaledEvidence(evidence, weightScale, curvatureScale) {
  if (weightScale === 1 && curvatureScale === 1) return evidence;
  const factor = weightScale ** 2 * curvatureScale;
  const risen = ({ rise }) => (rise === null ? null : rise * factor);
  return {
    ...evidence,
    curve: { ...evidence.curve, squared: times(evidence.curve.squared, weightScale ** 2) },
    hessian: scaledEstimate(evidence.hessian, curvatureScale),
    ggn: evidence.ggn && scaledEstimate(evidence.ggn, curvatureScale),
    directions: evidence.directions && scaledDirections(evidence.directions, weightScale, curvatureScale),
    points: evidence.points.map((point) => ({ ...point, rise: risen(point), drop: null, drop_error: null })),
    measured: false,
    retuned: null,
    model_points: evidence.model_points.map((point) => ({
      ...point,
      linear: point.linear * factor,
      quadratic: point.quadratic * factor,
    })),
  };
}

/** What one-shot pruning does: measured, or by the quadratic model where nothing was measured. */
const pointsOf = ({ points, model_points: model }) =>
  points.length ? points : model.map(({ sparsity, linear, quadratic }) => ({ sparsity, rise: linear + quadratic }));

function metricAt({ points, dense, already_removed: start }, sparsity) {
  const drop = atSparsity(points, sparsity, "drop", start);
  return drop === null || dense.metric === null ? null : dense.metric - drop;
}

const unknownAnswer = (rung, status) => ({
  rung,
  sparsity: null,
  low: null,
  high: null,
  basis: "unknown",
  metric: null,
  status,
});

const answerWithin = (rung, sparsity, half) => ({
  rung,
  sparsity,
  low: Math.max(0, sparsity - half),
  high: Math.min(1, sparsity + half),
  basis: "formula",
  metric: null,
});

function oneShot(evidence, { max_drop: maxDrop }, { epsilon }) {
  const { points, measured, already_removed: start, dense } = evidence;
  const bar = { allowed: maxDrop ?? epsilon, ofMetric: maxDrop !== null };
  let { low, high } = crossing(pointsOf(evidence), bar, start);
  const answer = { rung: "one-shot", sparsity: low, low, high, basis: "formula", metric: null };
  if (!measured) return answer;
  if (maxDrop !== null) {
    const [early, late] = [1, -1].map((sign) => level(points, maxDrop, sign * ERRORS, start));
    [low, high] = [Math.min(low, Math.max(start, early)), Math.max(high, late)];
  } else {
    ({ low } = crossing(points, bar, start, DEVIATIONS));
    ({ high } = crossing(points, bar, start, -DEVIATIONS));
  }
  return { ...answer, low, high, basis: "measured", metric: metricAt(evidence, answer.sparsity) };
}

/** What staged re-tuning reaches in all of its runs, see answers.retuned; none where it was not asked for. */
function retunedOf({ retuned, dense, already_removed: start }, { max_drop: maxDrop, retune }, { epsilon }, alone) {
  if (retune !== null && retuned === null)
    return [unknownAnswer("re-tuned", "nothing was re-tuned under these conditions")];
  if (retuned === null) return [];
  const bar = { allowed: maxDrop ?? epsilon, ofMetric: maxDrop !== null };
  const ends = [...new Set(retuned.points.map(({ seed }) => seed))].map((run) => {
    const points = retuned.points.filter(({ seed }) => seed === run);
    const where = crossing(points, bar, start);
    if (maxDrop === null || where.low <= alone.sparsity) return [where.low, where.low, where.high];
    const [early, late] = [1, -1].map((sign) => level(points, maxDrop, sign * ERRORS, start));
    const last = Math.min(late, points.at(-1).sparsity);
    return [where.low, Math.min(where.low, Math.max(start, early)), Math.max(where.high, last)];
  });
  const reached = Math.min(...ends.map(([at]) => at));
  const answer = { rung: "re-tuned", basis: "measured" };
  if (reached <= alone.sparsity) {
    const { sparsity, low, high, metric } = alone;
    return [{ ...answer, sparsity, low, high: Math.max(high, ends[0][2]), metric }];
  }
  const drops = retuned.points.filter(({ sparsity, drop }) => sparsity === reached && drop !== null);
  const metric = dense.metric === null || !drops.length ? null : dense.metric - Math.max(...drops.map((p) => p.drop));
  const [low, high] = [Math.min(...ends.map((end) => end[1])), Math.max(...ends.map((end) => end[2]))];
  return [{ ...answer, sparsity: reached, low, high, metric }];
}

/** Where re-training ends by the calibration, see answers.retrained; null where it says nothing. */
function forecastOf({ forecast, pattern, parameters, points, measured: asIs }, settings, spectra, reached) {
  if (forecast === null || pattern !== "unstructured" || settings.criterion !== "loss") return null;
  const features = { weights: parameters };
  const isScaled = points.length > 0 && !asIs;
  const measured = reached.filter(({ rung, basis }) => basis === "measured" || (isScaled && rung === "one-shot"));
  for (const { rung, sparsity } of measured) features[rung] = 1 - sparsity;
  for (const { rung, sparsity, low, high } of spectra) {
    features[rung] = 1 - sparsity;
    features[`${rung} error`] = Math.max(high - sparsity, sparsity - low);
  }
  const rule = forecast.rules.find(({ features: names }) => names.every((name) => features[name] > 0));
  if (rule === undefined) return null;
  const isBeyond = ([name, low, high]) => {
    const counts = name in features && (name === "weights" || rule.features.includes(name.replace(/ error$/, "")));
    return counts && !(low <= features[name] && features[name] <= high);
  };
  const { samples, passes } = settings.retune ?? USUAL;
  const isUsual = !("re-tuned" in features) || (samples === USUAL.samples && passes === USUAL.passes);
  const isOutside = settings.loss !== CROSS_ENTROPY || !isUsual || forecast.ranges.some(isBeyond);
  const centre = rule.features.reduce((sum, name, n) => sum + rule.slopes[n] * Math.log(features[name]), rule.intercept);
  const already = Math.max(0, ...measured.map(({ sparsity }) => sparsity));
  const [sparsity, low, high] = [0, rule.high, rule.low].map((end) =>
    Math.max(already, 1 - Math.min(1, Math.exp(centre + (isOutside ? WIDER : 1) * end))),
  );
  const status = isOutside ? OUTSIDE_BENCH : "";
  return { rung: "re-trained", sparsity, low, high, basis: "forecast", metric: null, status };
}

/** The GGN with the growth of the directional limit. */
const alongDirections = ({ ggn, directions }) => ({ ...ggn, growth: directions.growth });

/** By how much less and more may be kept at the directional limit, see answers._bound_errors. */
function boundErrors(evidence, at, epsilon) {
  const { directions, curve } = evidence;
  const kept = 1 - at;
  const factor = 1 + directions.spread;
  const solved = (measure) => directionalLimit(measure, directions, curve, epsilon);
  const steps = certified(alongDirections(evidence), solved).step_error + directions.growth * directions.step_error;
  return [kept - Math.max(0, kept - steps) / factor, (kept + steps) * factor - kept];
}

function boundOf(evidence, at, epsilon, lower, by) {
  if (at === null) return unknownAnswer("bound", evidence.unknown);
  const upper = withWindow(at, evidence.parameters);
  const [fewer, more] = boundErrors(evidence, at, epsilon);
  const [early, high] = [at - more, at + fewer].map((end) => withWindow(end, evidence.parameters));
  if (lower > high) {
    const reached = `it is ${hundredths(upper)}, and ${by} reaches ${hundredths(lower)}`;
    return unknownAnswer("bound", `the quadratic model's bound is refuted: ${reached}`);
  }
  if (high >= 1) {
    const reason = `the numerical error of the quadratic model's bound, ${hundredths(upper)}, reaches 100 %`;
    return unknownAnswer("bound", reason);
  }
  const low = Math.max(lower, early);
  return { rung: "bound", sparsity: Math.max(lower, upper), low, high, basis: "bound", metric: null };
}

/** The formula with the GGN, in sparsity. */
const ggnLimit = ({ evidence: { ggn, curve }, allowed: { epsilon } }) =>
  combined(ggn, (measure) => isotropicLimit(measure, curve, epsilon, "clip").sparsity);

/** The answers for what is allowed, see evidence.solve; without the texts that tell what an interval means. */
function solve(evidence, settings, allowed) {
  const { curve, parameters } = evidence;
  const { epsilon } = allowed;
  const isotropic = (negative) => (measure) => isotropicLimit(measure, curve, epsilon, negative).sparsity;
  const rung = (name, estimate, negative) => {
    const { standardError } = isotropicLimit(estimate.measure, curve, epsilon, negative);
    const half = 2 * standardError + estimate.step_error + estimate.sample_error;
    return answerWithin(name, combined(estimate, isotropic(negative)), half);
  };
  const sure = (estimate) => estimate && certified(estimate, isotropic(settings.negative));
  const known = { ...evidence, hessian: sure(evidence.hessian), ggn: sure(evidence.ggn) };
  const { ggn, directions } = known;
  const alone = oneShot(known, settings, allowed);
  const solved = (measure) => directionalLimit(measure, directions, curve, epsilon);
  const directional = ggn && combined(alongDirections(known), solved);
  const paper = rung("formula", known.hessian, settings.negative);
  const lower = alone.sparsity;
  const tuned = retunedOf(known, settings, allowed, alone);
  const spectra = ggn ? [rung("ggn", ggn, "clip")] : [];
  if (settings.curvature === "hessian") spectra.push(rung("hessian", known.hessian, "abs"));
  const again =
    forecastOf(known, settings, spectra, [alone, ...tuned]) ??
    (ggn ? rung("re-trained", ggn, "clip") : unknownAnswer("re-trained", evidence.unknown));
  const further = tuned.length > 0 && tuned[0].sparsity >= lower;
  const bound = boundOf(
    known,
    directional,
    epsilon,
    further ? tuned[0].sparsity : lower,
    further ? "re-tuning" : "pruning alone",
  );
  return {
    sparsity: paper.sparsity,
    interval: [paper.low, paper.high],
    lower,
    achieved: known.measured ? lower : null,
    retrained: again.sparsity,
    directional,
    upper: directional === null ? 1 : Math.max(lower, withWindow(directional, parameters)),
    answers: [alone, ...tuned, again, bound, paper],
    allowed,
    settings,
    evidence: known,
  };
}

/** The rise that goes with a fall of the metric; where there is none, that of a batch if it is known. */
function allowedAt({ evidence, allowed }, maxDrop) {
  const risen = fromMaxDrop(evidence.points, maxDrop, evidence.already_removed);
  if (risen === null && allowed.origin !== "batch-std")
    throw new Error("no network that was measured has lost so much");
  return risen ?? allowed;
}

/** The limit where something else is allowed (null keeps it), under scaled weights or a scaled curvature. */
function whatIf(limit, { epsilon = null, weightScale = 1, curvatureScale = 1, maxDrop = null } = {}) {
  let { settings, allowed } = limit;
  if (epsilon !== null) {
    allowed = { epsilon, low: epsilon, high: epsilon, origin: "number" };
    settings = { ...settings, epsilon, max_drop: null };
  } else if (maxDrop !== null) {
    settings = { ...settings, epsilon: "batch-std", max_drop: maxDrop };
    allowed = allowedAt(limit, maxDrop);
  }
  if (weightScale !== 1 || curvatureScale !== 1) settings = { ...settings, max_drop: null };
  return solve(scaledEvidence(limit.evidence, weightScale, curvatureScale), settings, allowed);
}
