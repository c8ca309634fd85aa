// Answers questions with the formulas of the report: reads {limits, questions} as JSON, prints one answer per question.
const fs = require("fs");
const vm = require("vm");

for (const file of process.argv.slice(2)) vm.runInThisContext(fs.readFileSync(file, "utf8"));
const { limits, questions } = JSON.parse(fs.readFileSync(0, "utf8"));
const answers = questions.map(({ limit, changes, target }) => {
  try {
    const answer = whatIf(limits[limit], changes);
    const { sparsity, lower, upper, retrained, directional, interval, achieved, answers: rungs } = answer;
    const ends = rungs.flatMap(({ sparsity, low, high, metric }) => [sparsity, low, high, metric]);
    const { epsilon, low, high } = answer.allowed;
    return {
      numbers: [sparsity, lower, upper, retrained, directional, ...interval, achieved, epsilon, low, high, ...ends],
      bases: rungs.map(({ rung, basis }) => [rung, basis]),
      rows: rows(answer),
      allowed: allowedText(answer),
      verdict: judged(answer, target),
      line: targetLine(answer, target).join(" "),
    };
  } catch (error) {
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(answers));
