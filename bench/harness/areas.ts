/** What look-ups are measured on: areas of one page each, with gaps between them. The C peers make the same ones. */

/** Where the first area is; the peers have this number and the next one too. */
const BASE = 2 ** 46;
/** How many addresses one pass looks up. */
export const ADDRESSES = 65_536;

/** Where areas begin, one after the other with gaps of 0 to 2 pages. */
export function areaStarts(page: number, areas: number): Float64Array {
  const starts = new Float64Array(areas);
  const random = randomNumbers();
  for (let i = 0, va = BASE; i < areas; i++, va += page * (1 + random(3))) starts[i] = va;
  return starts;
}

/** Integers from 0 up to and without `limit`; the same ones each time. */
export function randomNumbers(): (limit: number) => number {
  let state = 1;
  return (limit) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state * limit) / 2 ** 32);
  };
}
