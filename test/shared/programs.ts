/** Programs of this library in processes of their own, for tests. */
import { spawn } from 'node:child_process';

/** How a program ended. */
export interface Ended {
  /** Its exit status, or the signal that ended it. */
  readonly status: number | string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * Runs an ES module in a process of its own.
 *
 * @param argument what it finds as JSON in the environment variable TEST_ARGUMENTS
 */
export async function runModule(code: string, argument: unknown): Promise<Ended> {
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
    env: { ...process.env, TEST_ARGUMENTS: JSON.stringify(argument) },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 120_000,
    killSignal: 'SIGKILL',
  });
  const said = { stdout: '', stderr: '' };
  for (const stream of ['stdout', 'stderr'] as const)
    child[stream].setEncoding('utf8').on('data', (text: string) => (said[stream] += text));
  const status = await new Promise<Ended['status']>((resolve, reject) => {
    child.on('error', reject).on('close', (exitStatus, signal) => resolve(signal ?? exitStatus));
  });
  return { status, ...said };
}
