/**
 * Looks for completions from the event loop: at every turn of it while they come, after that when an interrupt says so or a
 * timer is over. It never keeps the loop from timers and sockets.
 */
import { clearTimeout, setImmediate, setTimeout } from '../../timers.js';
import { SPIN_TURNS } from '../wait.js';

/** What is looked after. */
export interface Polled {
  /** Takes what has completed, and submits what waits. @returns how much there was to do */
  poll(): number;
  /** Is something outstanding that will complete by itself? */
  busy(): boolean;
  /** Looks after what does not complete: called while nothing comes, and now and then while much does. */
  check(): void;
}

/** Milliseconds that it sleeps before it looks again; with interrupts only in case one was lost. */
const SLEEP_MS = { polling: 1, interrupts: 20 } as const;
/** In so many turns with completions, `check` is called once. */
const CHECK_TURNS = 1024;

/** One loop over one thing. */
export class Poller {
  readonly #polled: Polled;
  readonly #sleepMs: number;
  #turns = 0;
  #idle = 0;
  #active = false;
  #isOver = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param interrupts will `interrupt` be called? */
  constructor(polled: Polled, interrupts: boolean) {
    this.#polled = polled;
    this.#sleepMs = interrupts ? SLEEP_MS.interrupts : SLEEP_MS.polling;
  }

  /** Something was submitted. */
  start(): void {
    this.#idle = 0;
    if (this.#active) {
      if (this.#timer !== undefined) this.#now();
      return;
    }
    this.#active = true;
    setImmediate(this.#turn);
  }

  /** The controller has something. */
  interrupt(): void {
    if (this.#active && this.#timer === undefined) return;
    this.#active = true;
    this.#idle = 0;
    this.#stopTimer();
    this.#turn();
  }

  /** Looks no more. */
  stop(): void {
    this.#stopTimer();
    this.#isOver = true;
  }

  #now(): void {
    this.#stopTimer();
    setImmediate(this.#turn);
  }

  #stopTimer(): void {
    if (this.#timer !== undefined) clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  readonly #turn = (): void => {
    this.#timer = undefined;
    if (this.#isOver) return;
    const polled = this.#polled;
    if (polled.poll() > 0) {
      this.#idle = 0;
      if (++this.#turns % CHECK_TURNS === 0) polled.check();
    } else if (++this.#idle > SPIN_TURNS) polled.check();
    if (!polled.busy()) this.#active = false;
    else if (this.#idle <= SPIN_TURNS) setImmediate(this.#turn);
    else this.#timer = setTimeout(this.#turn, this.#sleepMs);
  };
}
