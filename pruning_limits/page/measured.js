// Measured one-shot pruning as numbers: points, what is allowed, and where it is crossed; see measured.py, epsilon.py.

const ERRORS = 2;
const DEVIATIONS = 4;

const placeOf = (sparsity) => -Math.log(Math.max(1 - sparsity, 1e-12));

/**
 * Where points lose more than is allowed for the first time: the last sparsity before it, and the first beyond. Some
 * standard errors are added to every rise.
 */
function crossing(points, { allowed, ofMetric }, start, shift = 0) {
  let low = start;
  for (const { sparsity, drop, rise, rise_error: error } of points) {
    const raised = rise === null || !shift ? rise : rise + shift * error;
    const lost = (ofMetric ? drop : raised) ?? Infinity;
    if (!(lost <= allowed)) return { low, high: Math.min(1, Math.max(low, sparsity)) };
    low = Math.max(low, sparsity);
  }
  return { low, high: 1 };
}

/** The rising sequence nearest to some values, weighted by their errors to the power -2 where these are finite. */
function monotone(values, errors = null) {
  const smallest = errors && Math.min(...errors.filter((error) => error > 0));
  const weighted = errors !== null && errors.some((error) => error) && errors.every(Number.isFinite);
  const blocks = [];
  values.forEach((value, n) => {
    let block = { value, weight: weighted ? Math.max(errors[n], smallest) ** -2 : 1, count: 1 };
    while (blocks.length && blocks.at(-1).value >= block.value) {
      const { value: before, weight, count } = blocks.pop();
      const total = weight + block.weight;
      block = {
        value: (weight * before + block.weight * block.value) / total,
        weight: total,
        count: count + block.count,
      };
    }
    blocks.push(block);
  });
  return blocks.flatMap(({ value, count }) => Array(count).fill(value));
}

/**
 * Sparsity at which the isotonic fit of the fall, shifted by some standard errors, passes a level; 1 where nowhere.
 * What is not finite is null in JSON: an infinite fall ends the search, an infinite error is that of a single sample.
 */
function level(points, allowed, shift, start) {
  const endless = points.findIndex(({ drop }) => drop === null);
  const rows = endless < 0 ? points : points.slice(0, endless);
  const end = endless < 0 ? 1 : points[endless].sparsity;
  const errors = rows.map((row) => row.drop_error ?? Infinity);
  const smooth = monotone(
    rows.map((row) => row.drop),
    errors,
  );
  const fit = [0, ...smooth.map((value, n) => (shift ? value + shift * errors[n] : value))];
  const places = [start, ...rows.map(({ sparsity }) => sparsity)].map(placeOf);
  for (let n = 1; n < fit.length; n += 1) {
    if (fit[n] > allowed) {
      const share = (allowed - fit[n - 1]) / (fit[n] - fit[n - 1]);
      return 1 - Math.exp(-(places[n - 1] + share * (places[n] - places[n - 1])));
    }
  }
  return end;
}

/** The rise or the fall at a sparsity, linear in the logarithm of the kept fraction; null beyond the last point. */
function atSparsity(points, sparsity, name, start) {
  const rows = points.filter((point) => point[name] !== null && point.sparsity > start);
  if (rows.length === 0 || sparsity > rows.at(-1).sparsity) return null;
  const places = [start, ...rows.map((row) => row.sparsity)].map(placeOf);
  return interpolate(placeOf(sparsity), places, [0, ...rows.map((row) => row[name])]);
}

/** The rise of the criterion at which one-shot pruned networks have lost so much of the metric, or null. */
function fromMaxDrop(points, maxDrop, start) {
  const rows = points.filter(({ drop, rise }) => drop !== null && rise !== null);
  if (rows.length === 0) return null;
  const rises = monotone(rows.map(({ rise }) => rise));
  const smooth = rows.map(({ sparsity }, n) => ({ sparsity, rise: rises[n] }));
  const [epsilon, low, high] = [0, ERRORS, -ERRORS].map((shift) => {
    const where = level(rows, maxDrop, shift, start);
    return where < 1 ? atSparsity(smooth, where, "rise", start) : null;
  });
  if (epsilon === null || epsilon <= 0) return null;
  return {
    epsilon,
    low: Math.min(epsilon, Math.max(low || 0, 0)),
    high: Math.max(epsilon, high || rises.at(-1)),
    origin: "max-drop",
  };
}
