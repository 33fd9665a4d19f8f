/** Asynchronous events: what the host is told when it has asked for it (NVM Express Base Specification 1.4, section 5.2). */
import { STATUS } from '../../../nvme/status.js';
import type { Command } from './command.js';
import type { Engine } from './engine.js';

/** Requests that may be outstanding at once. */
export const EVENT_REQUESTS = 4;
/** Events that wait for a request; more are forgotten. */
const MOST_WAITING = 16;

/** The events of a controller. */
export class Events {
  readonly #engine: Engine;
  readonly #requests: Command[] = [];
  readonly #waiting: number[] = [];
  /** Kinds of which none is sent until the host has read the log page of the last one. */
  #masked = 0;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** The host asks for an event. */
  request(command: Command): void {
    this.#forgetAborted();
    if (this.#requests.length >= EVENT_REQUESTS) {
      this.#engine.complete(command, STATUS.EVENT_LIMIT);
      return;
    }
    this.#requests.push(command);
    this.#engine.held.add(command);
    this.#send();
  }

  /** Something has happened. @param result as `eventResult` makes it */
  tell(result: number): void {
    if (this.#waiting.includes(result) || this.#waiting.length >= MOST_WAITING) return;
    this.#waiting.push(result);
    this.#send();
  }

  /** The host has read a log page. */
  seen(log: number): void {
    for (const result of this.#told.splice(0)) {
      if (((result >>> 16) & 0xff) === log) this.#masked &= ~(1 << (result & 0x7));
      else this.#told.push(result);
    }
    this.#send();
  }

  /** The controller was reset. */
  clear(): void {
    this.#requests.length = 0;
    this.#waiting.length = 0;
    this.#told.length = 0;
    this.#masked = 0;
  }

  /** Events that the host knows of, and whose log page it has not read. */
  readonly #told: number[] = [];

  #send(): void {
    this.#forgetAborted();
    for (let at = 0; at < this.#waiting.length && this.#requests.length > 0;) {
      const result = this.#waiting[at];
      const kind = 1 << (result & 0x7);
      if ((this.#masked & kind) !== 0) {
        at++;
        continue;
      }
      const request = this.#requests.shift();
      if (request === undefined) return;
      this.#waiting.splice(at, 1);
      this.#masked |= kind;
      this.#told.push(result);
      this.#engine.held.delete(request);
      this.#engine.complete(request, STATUS.SUCCESS, result);
    }
  }

  #forgetAborted(): void {
    const { held } = this.#engine;
    for (let at = this.#requests.length - 1; at >= 0; at--)
      if (!held.has(this.#requests[at])) this.#requests.splice(at, 1);
  }
}
