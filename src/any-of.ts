/**
 * A set that also returns any one of its values in constant time. (Getting the first value of a `Set` walks over all
 * deleted ones before it.)
 */
export class AnyOf<T> {
  readonly #values = new Set<T>();
  #any: T | undefined;
  /** Continues behind deleted values. */
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

  /** One of the values, the same until it is deleted; `undefined` if there is none. */
  get any(): T | undefined {
    if (this.#any !== undefined || this.#values.size === 0) return this.#any;
    let next = this.#next.next();
    if (next.done === true) next = (this.#next = this.#values.values()).next();
    return (this.#any = next.done === true ? undefined : next.value);
  }

  /** All values, in the order they were added. */
  [Symbol.iterator](): IterableIterator<T> {
    return this.#values.values();
  }
}
