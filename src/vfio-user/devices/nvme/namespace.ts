/** A namespace: an image, in blocks. */
import type { Image } from './image.js';

/** The sizes of blocks that a namespace can be formatted with, by the index of the format: powers of two. */
export const FORMATS = [9, 12] as const;

/** A namespace of the controller. */
export class Namespace {
  /** Is it attached, so that the host sees it? */
  attached = true;
  /** Is it being formatted? */
  formatting = false;
  /** bytes */
  blockSize: number;
  blocks: number;
  #format: number;

  constructor(
    readonly id: number,
    readonly image: Image,
    blockSize: number,
    /** 16 bytes that no other namespace has */
    readonly nguid: Uint8Array,
  ) {
    this.#format = FORMATS.findIndex((power) => 2 ** power === blockSize);
    this.blockSize = blockSize;
    this.blocks = Math.floor(image.bytes / blockSize);
  }

  /** Index in {@link FORMATS}. */
  get format(): number {
    return this.#format;
  }

  set format(index: number) {
    this.#format = index;
    this.blockSize = 2 ** FORMATS[index];
    this.blocks = Math.floor(this.image.bytes / this.blockSize);
  }
}
