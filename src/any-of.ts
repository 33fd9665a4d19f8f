/**
 * A set that also gives any one of its values in constant time, whichever went before. (The first value of a `Set` takes a walk
 * over all that were deleted in front of it.)
 */
export class AnyOf<T> {
  readonly #values = new Set<T>();
  #any: T | undefined;
  /** Goes on behind what was deleted. */
  #next = this.#values.values();

  get size(): number {
    return this.#values.size;
  }

  has(value: T): boolean {
    return this.#values.has(value);
  }

  add(value: T): void {
    this.#values.add(value);
  }

  delete(value: T): void {
    this.#values.delete(value);
    if (this.#any === value) this.#any = undefined;
  }

  /** One of them, and the same one until it is deleted; `undefined` when there is none. */
  get any(): T | undefined {
    if (this.#any !== undefined || this.#values.size === 0) return this.#any;
    let next = this.#next.next();
    if (next.done === true) next = (this.#next = this.#values.values()).next();
    return (this.#any = next.done === true ? undefined : next.value);
  }

  /** All of them, in the order they came. */
  [Symbol.iterator](): IterableIterator<T> {
    return this.#values.values();
  }
}
