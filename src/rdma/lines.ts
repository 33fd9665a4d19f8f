/**
 * Lines out of a stream that nobody trusts. What has come of a line is in one array, so that it costs what it is long, however
 * small the segments are.
 */

const NEWLINE = 10;
const NOTHING = Buffer.alloc(0);

/** See the head of the file. */
export class Lines {
  readonly #most: number;
  /** What has come of a line is at its beginning. */
  #room = NOTHING;
  #length = 0;

  /** @param most bytes of a line */
  constructor(most: number) {
    this.#most = most;
  }

  /** Has a line begun that has not ended? */
  get isOpen(): boolean {
    return this.#length > 0;
  }

  /**
   * Takes what has come, and calls back with each line that ends in it, without its end. The bytes are the callback's only until
   * it returns.
   *
   * @param each returns whether to go on
   * @returns `too long` when a line is
   */
  take(chunk: Buffer, each: (line: Buffer) => boolean): 'fine' | 'too long' {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      const part = chunk.subarray(start, end);
      start = end + 1;
      if (this.#length + part.length > this.#most) return 'too long';
      if (!each(this.#whole(part))) return 'fine';
    }
    const rest = chunk.subarray(start);
    if (this.#length + rest.length > this.#most) return 'too long';
    this.#append(rest);
    return 'fine';
  }

  /** Forgets what has come. */
  clear(): void {
    this.#room = NOTHING;
    this.#length = 0;
  }

  #whole(end: Buffer): Buffer {
    if (this.#length === 0) return end;
    this.#append(end);
    const line = this.#room.subarray(0, this.#length);
    this.clear();
    return line;
  }

  #append(part: Buffer): void {
    const length = this.#length + part.length;
    if (length > this.#room.length) {
      const room = Buffer.allocUnsafeSlow(Math.min(this.#most, Math.max(length, 2 * this.#room.length, 256)));
      this.#room.copy(room, 0, 0, this.#length);
      this.#room = room;
    }
    part.copy(this.#room, this.#length);
    this.#length = length;
  }
}
