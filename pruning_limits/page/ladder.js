// The answer in words, to the letter as in ladder.py.

const NAMES = {
  "one-shot": "pruned, nothing else",
  "re-tuned": "re-tuned",
  "re-trained": "re-trained",
  bound: "no hope beyond",
  formula: "the paper's formula",
};
const NONE = "-";

const answerOf = (limit, rung) => limit.answers.find((answer) => answer.rung === rung);

/** A mean metric: an accuracy in per cent, any other as a number. */
function metricText({ settings }, value) {
  if (value === null) return NONE;
  return settings.metric === "accuracy" ? `${fixed(100 * value, 2)} %` : general(value, 4);
}

/** A fall of the metric: of an accuracy in points. */
const dropText = ({ settings }, drop) =>
  settings.metric === "accuracy" ? `${general(100 * drop, 3)} points` : general(drop, 3);

/** What may be lost. */
function allowedText(limit) {
  const { allowed, settings, evidence } = limit;
  const { dense } = evidence;
  const noise = allowed.low === allowed.high ? "" : ` (${general(allowed.low, 3)} to ${general(allowed.high, 3)})`;
  let loss = `a rise of the ${settings.criterion} by ${general(allowed.epsilon, 3)}${noise}`;
  loss += ` from ${dense.objective === null ? "inf" : general(dense.objective, 3)}`;
  if (allowed.origin === "batch-std") loss += ", the fluctuation of a batch of 128";
  if (settings.max_drop === null) return `allowed: ${loss}`;
  const where = settings.held_out ? "held-out" : "training";
  const resolution = dense.resolution === null ? "" : `, resolution ${dropText(limit, dense.resolution)}`;
  const fall = `${settings.metric} -${dropText(limit, settings.max_drop)} of ${metricText(limit, dense.metric)}`;
  return `allowed: ${fall} (${whole(dense.metric_samples)} ${where} samples${resolution}), ${loss}`;
}

function forecastText({ evidence }, status) {
  const share = evidence.forecast === null ? "" : `, ${general(10 * evidence.forecast.coverage, 3)} of 10 networks`;
  return `forecast${share}${status.includes(OUTSIDE_BENCH) ? `, ${OUTSIDE_BENCH}` : ""}`;
}

/** What the forecast says of training to a sparsity; nothing where there is none. */
function training(limit, sparsity) {
  const { basis, low, high } = answerOf(limit, "re-trained");
  if (basis !== "forecast") return "";
  const may = sparsity <= low ? "will probably" : sparsity <= high ? "may" : "will probably not";
  return `; training ${may} reach it: the forecast is ${percent(low).replace(/ %$/, "")} to ${percent(high)}`;
}

function how(limit, { rung, basis, sparsity, status }) {
  if (rung === "one-shot") return basis === "measured" ? "measured" : "quadratic model, not measured";
  const tuning = limit.evidence.retuned;
  if (rung === "re-tuned") return tuning === null ? "measured" : `measured, ${fixed(tuning.seconds, 0)} s`;
  if (rung === "re-trained") return basis === "forecast" ? forecastText(limit, status) : "formula, no claim of coverage";
  if (rung === "bound") return "bound of the quadratic model";
  if (limit.achieved === null || sparsity === null) return "formula";
  const points = 100 * (sparsity - limit.achieved);
  return `${fixed(Math.abs(points), 1)} points ${points > 0 ? "above" : "below"} what was measured`;
}

function row(limit, answer) {
  const { rung, sparsity, low, high, metric, status } = answer;
  if (sparsity === null) return [NAMES[rung], "unknown", "", NONE, status];
  const interval = `${percent(low).replace(/ %$/, "")} to ${percent(high)}`;
  const tuning = limit.evidence.retuned;
  const samples = rung === "re-tuned" && tuning !== null ? `, ${whole(tuning.samples)} samples` : "";
  return [NAMES[rung] + samples, percent(sparsity), interval, metricText(limit, metric), how(limit, answer)];
}

/** The ladder: the dense network, then every rung; name, sparsity, interval, metric, how it is known. */
const rows = (limit) => [
  ["dense", "0 %", "", metricText(limit, limit.evidence.dense.metric), "measured"],
  ...limit.answers.map((answer) => row(limit, answer)),
];

/** Whether the network is no better than constant outputs, see Dense.at_chance. */
function isAtChance(dense) {
  const { constant_gain: gain, constant_error: error, constant_metric: constant, metric } = dense;
  if (gain === null || error === null || gain > 2 * error) return false;
  return metric === null || constant === null || metric <= constant + 2 * (dense.metric_error ?? 0);
}

/** Whether a sparsity can be reached: status, reason, margin and metric. */
function judged(limit, sparsity) {
  const { lower, evidence, achieved } = limit;
  const metric = metricAt(evidence, sparsity);
  const [target, reached] = [percent(sparsity), percent(lower)];
  const known = achieved !== null ? "measured" : "by the quadratic model, not measured";
  const isMeasured = sparsity === 0 || evidence.points.some((point) => point.sparsity === sparsity);
  const read = isMeasured ? "" : ", by interpolation";
  const keeps = metric === null ? "" : `; ${limit.settings.metric} at ${target}: ${metricText(limit, metric)}${read}`;
  if (isAtChance(evidence.dense)) {
    const nothing = "the network is no better than constant outputs, so that pruning can lose nothing and no sparsity";
    return { status: "open", reason: `${target}: ${nothing} means anything; train it first`, margin: 0, metric };
  }
  if (sparsity <= lower) {
    const reason = `${target} is in reach by pruning alone, which gets to ${reached} (${known})${keeps}`;
    return { status: "achievable", reason, margin: lower - sparsity, metric };
  }
  const alone = `${target} is out of reach by pruning alone, which gets to ${reached} (${known})${keeps}`;
  const tuned = answerOf(limit, "re-tuned");
  if (tuned && tuned.sparsity !== null && sparsity <= tuned.sparsity) {
    const at = tuned.metric === null ? "" : `, ${limit.settings.metric} there: ${metricText(limit, tuned.metric)}`;
    const reason = `${alone}; re-tuning reaches it: it gets to ${percent(tuned.sparsity)} (measured${at})`;
    return { status: "open", reason, margin: Math.min(sparsity - lower, tuned.sparsity - sparsity), metric };
  }
  const { high, status } = answerOf(limit, "bound");
  if (high === null) {
    const reason = `${alone}${training(limit, sparsity)}; no bound is established beyond ${reached}: ${status}`;
    return { status: "open", reason, margin: sparsity - lower, metric };
  }
  if (sparsity > high) {
    const reason = `${target} is beyond ${percent(high)}, the bound of the quadratic model and its numerical error`;
    return { status: "infeasible", reason, margin: sparsity - high, metric };
  }
  const way = training(limit, sparsity) || "; training may reach it";
  const reason = `${alone}${way}; the bound of the quadratic model is at ${percent(high)}`;
  return { status: "open", reason, margin: Math.min(sparsity - lower, high - sparsity), metric };
}

/** The verdict on a target in two parts: in a word, and why. */
function targetLine(limit, sparsity) {
  const { status, reason } = judged(limit, sparsity);
  return [`your target ${percent(sparsity)}: ${status}.`, `${reason}.`];
}
