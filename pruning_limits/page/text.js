// Numbers as Python writes them: rounded half to even where a number lies exactly between two.

/** The shorter of two exact texts of a number where it lies just between two and the digit before is even. */
function even(text, exact, length) {
  const [kept, rest] = [exact.slice(0, length), exact.slice(length).replace(/e.*/, "")];
  const isTie = /^\.?50*$/.test(rest) && /[02468]\.?$/.test(kept);
  return isTie ? kept.replace(/\.$/, "") : text;
}

/** As f"{value:.2f}", with any number of digits. */
function fixed(value, digits) {
  const text = value.toFixed(digits);
  return even(text, value.toFixed(100), text.length);
}

/** As f"{value:.3g}", with any number of digits. */
function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const exponent = Number(power);
  const strip = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent >= -4 && exponent < digits) return strip(fixed(value, digits - 1 - exponent));
  const exact = even(mantissa, value.toExponential(100), mantissa.length);
  return `${strip(exact)}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
}

/** As f"{share:.2%}". */
const hundredths = (share) => `${fixed(100 * share, 2)}%`;

/** A sparsity with one decimal, or as many as two digits of what is kept take; see ladder.percent. */
function percent(share) {
  const kept = 100 * (1 - share);
  if (kept <= 0) return "100 %";
  if (share <= 0) return "0 %";
  return `${fixed(100 * share, Math.max(1, 1 - Math.floor(Math.log10(kept) + 1e-9)))} %`;
}

const whole = (value) => Math.round(value).toLocaleString("en");
