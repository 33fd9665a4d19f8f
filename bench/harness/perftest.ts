/** perftest, the usual benchmark of RDMA: its programs `ib_write_bw` and `ib_send_lat`, two processes of this machine. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** What a run does; the names are those of its options. */
export interface PerftestRun {
  readonly program: 'ib_write_bw' | 'ib_send_lat';
  readonly device: string;
  readonly port: number;
  readonly gidIndex: number;
  readonly options: readonly string[];
  /** What comes before the program on the command line. */
  readonly prefix: readonly string[];
}

/** Its version, or why it can not be used. */
export function perftestVersion(): { readonly version: string } | string {
  const { stdout } = spawnSync('ib_write_bw', ['--version'], { encoding: 'utf8' });
  const version = /Version: *(\S+)/i.exec(stdout ?? '')?.[1];
  return version === undefined ? 'no perftest (its name on Debian)' : { version };
}

/** How often it is tried again: it measures the clock before it begins, and gives up when the machine is busy meanwhile. */
const TRIES = 5;

/** Runs it. @returns the numbers of the line of its report @throws Error with what it said, when it says something else */
export async function runPerftest(run: PerftestRun): Promise<number[]> {
  for (let tries = 1; ; tries++) {
    const output = await outputOf(run);
    const line = output.split('\n').findLast((text) => /^\s*\d+(\s+[\d.]+){4,}\s*$/.test(text.replaceAll('-nan', '0')));
    if (line !== undefined) return line.trim().split(/\s+/).map(Number);
    if (tries === TRIES) throw new Error(`${run.program} has no report: ${output.trim()}`);
  }
}

async function outputOf({ program, device, port, gidIndex, options, prefix }: PerftestRun): Promise<string> {
  const tcpPort = await freePort();
  const [command, ...args] = [
    ...prefix,
    ...[program, '-F', '-d', device, '-i', `${port}`, '-x', `${gidIndex}`, '-p', `${tcpPort}`, ...options],
  ];
  const server = launch(command, args);
  while (!isListening(tcpPort)) {
    if (server.hasEnded()) throw new Error(`${program} does not start: ${(await server.output).trim()}`);
    await sleep(10);
  }
  const client = launch(command, [...args, '127.0.0.1']);
  const [output] = await Promise.all([client.output, server.output]);
  return output;
}

function launch(
  command: string,
  args: readonly string[],
): { readonly output: Promise<string>; readonly hasEnded: () => boolean } {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (data: string) => {
      text += data;
    });
  return {
    output: once(child, 'close').then(() => text),
    hasEnded: () => child.exitCode !== null || child.signalCode !== null,
  };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0);
  await once(server, 'listening');
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' && address !== null ? address.port : 0;
}

/** Does somebody listen on this port? It does not say so itself, and takes a look at it for a client. */
function isListening(port: number): boolean {
  const listener = new RegExp(`:${port.toString(16).toUpperCase().padStart(4, '0')} \\S+ 0A `);
  return ['/proc/net/tcp', '/proc/net/tcp6'].some((path) => {
    try {
      return listener.test(readFileSync(path, 'latin1'));
    } catch {
      return false;
    }
  });
}
