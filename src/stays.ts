/** What keeps objects of this library in the thread that made them. */

/**
 * The value of an own field of objects that belong to their thread. `postMessage` can not copy a symbol, so that sending such an object is
 * a DataCloneError that says this, where the other thread would otherwise get a dead copy of its public fields.
 */
export const STAYS: unique symbol = Symbol(
  'an object of anydma, which stays in the thread that made it: send what its share() returns, and attach to that there',
);
