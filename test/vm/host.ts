/** What suites can ask the host for, from inside the guest. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { leave } from './requests.js';
import type { Answer, Request } from './requests.js';

let count = 0;

/** Where devices can be put in the running machine: `bus` of the root port and of the bridge that machine.ts names. */
export interface NewDevice {
  /** QEMU's name of its kind, such as `edu`. */
  readonly driver: string;
  readonly id: string;
  readonly bus: string;
  /** Its other properties. */
  readonly [property: string]: unknown;
}

export const host = {
  /**
   * Asks the guest to give the device up, as somebody does who presses the slot's button. Resolves at once; whether the guest
   * does it, and when, is the guest's affair: see {@link host.deviceGone}.
   */
  async deviceDel(id: string): Promise<void> {
    await host.qmp('device_del', { id });
  },

  /** Resolves when a device whose removal has been asked for is out of the machine; rejects after `timeoutMs`. */
  async deviceGone(id: string, timeoutMs = 30_000): Promise<void> {
    await ask({ kind: 'gone', device: id, timeoutMs }, timeoutMs + 10_000);
  },

  /** Puts a device in. The guest sees it some time later. */
  async deviceAdd(device: NewDevice): Promise<void> {
    await host.qmp('device_add', device);
  },

  /** Makes a network backend whose other end echoes frames to who sent them: for `deviceAdd({ ..., netdev: id })`. */
  async wire(id: string): Promise<void> {
    await ask({ kind: 'wire', id }, 30_000);
  },

  /** Takes it away, once its device is gone. */
  async unwire(id: string): Promise<void> {
    await ask({ kind: 'unwire', id }, 30_000);
  },

  /** How many frames it has echoed. */
  async echoed(id: string): Promise<number> {
    return Number(await ask({ kind: 'echoed', id }, 30_000));
  },

  /** Any command of QEMU's monitor; resolves with what it returns. */
  qmp(command: string, parameters: Readonly<Record<string, unknown>> = {}): Promise<unknown> {
    return ask({ kind: 'qmp', command, parameters }, 30_000);
  },
};

async function ask(request: Request, timeoutMs: number): Promise<unknown> {
  const share = process.env.ANYDMA_VM;
  if (share === undefined) throw new Error('this is not a guest of test/vm');
  const id = `${process.pid}-${++count}`;
  leave(share, `request-${id}`, request);
  const path = join(share, `answer-${id}`);
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const text = contentOf(path);
    if (text !== undefined) {
      rmSync(path);
      const answer = JSON.parse(text) as Answer;
      if ('error' in answer) throw new Error(`the host: ${answer.error}`);
      return answer.value;
    }
    if (performance.now() > deadline) throw new Error('the host does not answer');
    await delay(20);
  }
}

function contentOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
