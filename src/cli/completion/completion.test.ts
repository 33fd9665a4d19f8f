/** Completion, as the shells do it: each types a line with a tab in a terminal of its own. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { describe, test } from 'node:test';
import { Room } from '../../../test/shared/command.js';

const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
const without = (...programs: string[]): string | false => {
  const missing = programs.filter((program) => !has(program));
  return missing.length === 0 ? false : `without ${missing.join(' and ')}`;
};

/** What is typed before a tab, and the line that becomes of it. */
const LINES: [typed: string, line: string][] = [
  ['hugep', 'hugepages'],
  ['map --mo', 'map --mode'],
  ['map --mode ow', 'map --mode owned'],
  ['map --device vdev:edu0 --access read-', 'map --device vdev:edu0 --access read-write'],
  ['map --mode=he', 'map --mode=heap'],
  ['rdma ser', 'rdma serve'],
  ['rdma write --to 192.0.2.1 --mode ext', 'rdma write --to 192.0.2.1 --mode external'],
  ['serve co', 'serve copy'],
  ['explain EOVERF', 'explain EOVERFLOW'],
  ['map --file some', 'map --file some file'],
  ['completion fi', 'completion fish'],
];
const [device] = process.platform === 'linux' ? readdirSync('/sys/bus/pci/devices').slice(-1) : [];
if (device !== undefined) LINES.push([`bind ${device.slice(0, -1)}`, `bind ${device}`]);

/** The words that a program got, when `typed` and a tab were typed in a shell for each of the lines. */
async function type(room: Room, shell: string[], setUp: string): Promise<string[]> {
  const child = spawn('script', ['-qec', shell.join(' '), '/dev/null'], {
    cwd: room.path,
    env: { ...process.env, TERM: 'dumb', HOME: room.path, PS1: '', INPUTRC: '/dev/null' },
    stdio: ['pipe', 'pipe', 'ignore'],
  });
  let said = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text));
  const exited = new Promise((resolve) => child.once('close', resolve));
  // The words are in a file: what the terminal shows has the echo of the typing in it.
  child.stdin.write(`${setUp}\n`);
  for (const [typed] of LINES) child.stdin.write(`anydma ${typed}\t\n`);
  child.stdin.write('exit\n');
  const timer = setTimeout(() => child.kill('SIGKILL'), 60_000);
  await exited;
  clearTimeout(timer);
  return said.split('\n');
}

/** A program that writes its words to a file takes the place of `anydma`. */
const STAND_IN = 'anydma() { printf "%s\\n" "$*" >> got; }';

async function typedIn(shell: 'bash' | 'zsh', command: string[], setUp: string): Promise<void> {
  using room = new Room();
  const { stdout: script } = await room.call(['completion', shell]);
  writeFileSync(room.file('_anydma'), script);
  writeFileSync(room.file('some file'), '');
  writeFileSync(room.file('set-up'), `${STAND_IN}\n${setUp}\n`);
  const said = await type(room, command, '. ./set-up');
  const { stdout } = spawnSync('cat', [room.file('got')], { encoding: 'utf8' });
  assert.deepEqual(
    stdout.split('\n').slice(0, -1),
    LINES.map(([, line]) => line),
    said.join('\n'),
  );
}

describe('completion', { concurrency: 4 }, () => {
  test('bash', { skip: without('script', 'bash') }, () =>
    typedIn('bash', ['bash', '--norc', '--noprofile', '-i'], '. ./_anydma'),
  );

  test('zsh', { skip: without('script', 'zsh') }, () =>
    typedIn('zsh', ['zsh', '-f', '-i'], 'autoload -Uz compinit && compinit -u -D && . ./_anydma'),
  );

  test('zsh, from a folder of $fpath', { skip: without('script', 'zsh') }, () =>
    typedIn('zsh', ['zsh', '-f', '-i'], 'fpath=($PWD $fpath) && autoload -Uz compinit && compinit -u -D'),
  );

  test('fish', { skip: without('fish') }, async () => {
    using room = new Room();
    const { stdout: script } = await room.call(['completion', 'fish']);
    writeFileSync(room.file('script.fish'), script);
    writeFileSync(room.file('some file'), '');
    mkdirSync(room.file('home'));
    for (const [typed, line] of LINES) {
      const { stdout, stderr } = spawnSync('fish', ['-N', '-c', `source script.fish; complete -C "anydma ${typed}"`], {
        cwd: room.path,
        env: { ...process.env, HOME: room.file('home') },
        encoding: 'utf8',
      });
      const found = stdout.split('\n').map((each) => each.split('\t')[0].replace('\\', ''));
      const word =
        line
          .replace(/^.* (?=some file$)/, '')
          .split(/ (?!file$)/)
          .at(-1) ?? '';
      assert.ok(found.includes(word), `${typed}: ${stdout}${stderr}`);
    }
  });

  test('as a document; of another shell it is wrong usage', async () => {
    using room = new Room();
    const { status, stdout } = await room.call(['completion', 'bash', '--json']);
    assert.equal(status, 0);
    const { ok, shell, script } = JSON.parse(stdout) as Record<string, unknown>;
    assert.deepEqual([ok, shell], [true, 'bash']);
    assert.match(String(script), /complete -F _anydma anydma\n$/);
    assert.equal((await room.call(['completion', 'tcsh'])).status, 2);
  });
});
