// Figures in words and units for people. The raw number stays beside them, in data-value.

const digits = (most) => new Intl.NumberFormat("en", { maximumFractionDigits: most });
const [whole, tenth, hundredth] = [digits(0), digits(1), digits(2)];
const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const LONGEST = 160;

/** Three significant digits or so. */
function rounded(value) {
  return (value < 9.995 ? hundredth : value < 99.95 ? tenth : whole).format(value);
}

function both(count, each, large, small) {
  const rest = count % each;
  return `${whole.format((count - rest) / each)} ${large}${rest > 0 ? ` ${rest} ${small}` : ""}`;
}

function seconds(value) {
  if (value < 59.95) return `${rounded(value)} s`;
  const all = Math.round(value);
  if (all < 3600) return both(all, 60, "min", "s");
  const minutes = Math.round(value / 60);
  if (minutes < 1440) return both(minutes, 60, "h", "min");
  return both(Math.round(value / 3600), 24, "d", "h");
}

function ms(value) {
  if (value >= 999.5) return seconds(value / 1000);
  return `${(value < 0.995 ? hundredth : value < 9.95 ? tenth : whole).format(value)} ms`;
}

function share(value) {
  const percent = value * 100;
  if (percent > 0 && percent < 0.05) return "<0.1 %";
  if (percent < 100 && percent > 99.95) return ">99.9 %";
  return `${tenth.format(percent)} %`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1023.5 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${unit === 0 ? whole.format(value) : rounded(value)} ${units[unit]}`;
}

/** By the names that `data-as` and columns have for them. */
export const FORMATS = {
  bytes,
  count: (value) => whole.format(value),
  factor: (value) => `${rounded(value)}×`,
  ms,
  perSecond: (value) => `${rounded(value)}/s`,
  plain: String,
  rate: rounded,
  seconds,
  share,
};

/** When that was: the time of day, with the date where it was not today. */
export function moment(timestamp) {
  const then = new Date(timestamp);
  if (Number.isNaN(then.getTime())) return null;
  const time = clock.format(then);
  return then.toDateString() === new Date().toDateString() ? time : `${day.format(then)} ${time}`;
}

/** Names and paths that others chose may be of any length. */
export function short(text) {
  return text != null && text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
}

export function counted(count, one, many = `${one}s`) {
  return `${whole.format(count)} ${count === 1 ? one : many}`;
}
