/**
 * Splits a stream from an untrusted peer into lines. An incomplete line is kept in one array, so that it costs as much
 * memory as it is long, however small the segments are.
 */

const NEWLINE = 10;
const NOTHING = Buffer.alloc(0);

/** Collects the bytes of a stream and gives its lines. */
export class Lines {
  readonly #most: number;
  /** Begins with the incomplete line. */
  #room = NOTHING;
  #length = 0;

  /** @param most bytes in a line at most */
  constructor(most: number) {
    this.#most = most;
  }

  /** Has a line begun that is not complete? */
  get isOpen(): boolean {
    return this.#length > 0;
  }

  /**
   * Takes received bytes and calls `each` with every complete line, without its newline. The bytes are valid only
   * during the callback.
   *
   * @param each returns whether to continue
   * @returns `too long` if a line is
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

  /** Drops the incomplete line. */
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
