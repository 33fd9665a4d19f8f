/** For suites in a guest: two hosts that are two network namespaces, joined by a pair of interfaces with Soft-RoCE on each. */
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

/** The device here, and its address. */
export const NEAR = { device: 'rxenear', netdev: 'near0', ipv4: '10.77.0.1' } as const;
/** The device of the other host. */
export const FAR = { device: 'rxefar', netdev: 'far0', ipv4: '10.77.0.2', namespace: 'far' } as const;

/** Takes away all RDMA devices, and both hosts: a suite before may have made them. */
export function clearNetwork(): void {
  const links = JSON.parse(run('rdma', '-j', 'link')) as { readonly ifname: string }[];
  for (const name of new Set(links.map(({ ifname }) => ifname))) run('rdma', 'link', 'delete', name);
  // With the namespace it would go at some time later.
  if (existsSync(`/sys/class/net/${NEAR.netdev}`)) ip('link', 'delete', NEAR.netdev);
  if (existsSync(`/run/netns/${FAR.namespace}`)) ip('netns', 'delete', FAR.namespace);
}

/** Makes both hosts. */
export function makeNetwork(): void {
  const inside = ['-n', FAR.namespace];
  clearNetwork();
  ip('link', 'set', 'lo', 'up');
  ip('netns', 'add', FAR.namespace);
  ip('link', 'add', NEAR.netdev, 'type', 'veth', 'peer', 'name', FAR.netdev, 'netns', FAR.namespace);
  ip('addr', 'add', `${NEAR.ipv4}/24`, 'dev', NEAR.netdev);
  ip('link', 'set', NEAR.netdev, 'up');
  ip(...inside, 'addr', 'add', `${FAR.ipv4}/24`, 'dev', FAR.netdev);
  ip(...inside, 'link', 'set', FAR.netdev, 'up');
  ip(...inside, 'link', 'set', 'lo', 'up');
  run('rdma', 'link', 'add', NEAR.device, 'type', 'rxe', 'netdev', NEAR.netdev);
  ip('netns', 'exec', FAR.namespace, 'rdma', 'link', 'add', FAR.device, 'type', 'rxe', 'netdev', FAR.netdev);
}

/** Runs a program; its output is the error when it fails. */
export function run(program: string, ...args: string[]): string {
  return execFileSync(program, args, { encoding: 'utf8' });
}

function ip(...args: string[]): string {
  return run('ip', ...args);
}

/** A process on the other host that serves its memory: see rdma-peer.ts. */
export interface FarPeer extends AsyncDisposable {
  /** The TCP port that it listens at, on {@link FAR}'s address */
  readonly port: number;
}

/**
 * Starts rdma-peer.ts on the other host.
 *
 * @param kind of its memory: `external`, `heap` or `owned`
 * @param manager `cm` to have queue pairs connected by the connection manager
 */
export async function startFarPeer(
  kind: string,
  { device, ipv4 }: { readonly device: string; readonly ipv4: string } = FAR,
  ...manager: 'cm'[]
): Promise<FarPeer> {
  const program = fileURLToPath(new URL('rdma-peer.js', import.meta.url));
  const args = ['netns', 'exec', FAR.namespace, process.execPath, program, device, ipv4, kind, ...manager];
  const child: ChildProcess = spawn('ip', args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  const { stdin, stdout } = child;
  if (stdin === null || stdout === null) throw new Error('no pipes');
  const first = once(createInterface({ input: stdout }), 'line') as Promise<[string]>;
  const [line] = await Promise.race([first, exited.then(() => Promise.reject(new Error('the peer ended')))]);
  return {
    port: Number(line),
    async [Symbol.asyncDispose]() {
      stdin.end();
      await exited;
    },
  };
}
