// Answers questions with the formulas of the report: reads {limits, questions} as JSON, prints one answer per question.
const fs = require("fs");
const vm = require("vm");

vm.runInThisContext(fs.readFileSync(process.argv[2], "utf8"));
const { limits, questions } = JSON.parse(fs.readFileSync(0, "utf8"));
const answers = questions.map(({ limit, changes, target }) => {
  try {
    const { sparsity, lower, upper, retrained, directional, interval, achieved } = whatIf(limits[limit], changes);
    const verdict = check(whatIf(limits[limit], changes), target);
    return { numbers: [sparsity, lower, upper, retrained, directional, ...interval], achieved, verdict };
  } catch (error) {
    return { error: error.message };
  }
});
process.stdout.write(JSON.stringify(answers));
