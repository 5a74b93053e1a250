// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 9842688 -> "9.39 MiB": three figures. */
export function size(bytes) {
  let unit = 0;
  while (Math.abs(bytes) >= 1000 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${figures(bytes, unit ? 3 : 4)} ${UNITS[unit]}`;
}

export function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 1 ? 1 : 0)}%`;
}

/** 1234.5 -> "1,235"; 12.345 -> "12.3". */
export function figures(number, most = 3) {
  return number.toLocaleString("en", { maximumSignificantDigits: Math.max(most, String(Math.trunc(number)).length) });
}

export function count(number) {
  return Math.round(number).toLocaleString("en");
}

export function seconds(number) {
  return `${number.toFixed(number < 10 ? 2 : 1)} s`;
}
