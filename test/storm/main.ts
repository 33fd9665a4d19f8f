/** Storms: `node dist/test/storm/main.js [--short] [--only NAME] [--seed S] [--node PATH] [--list] [--json]`. */
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { Output } from '../../src/cli/shared/output.js';
import { openPlatform } from '../../src/platform/open.js';
import type { Report } from './child.js';
import { FIGURES, type Figure, type Figures } from './figures.js';
import type { StormEntry } from './storm.js';
import { STORMS } from './storms.js';

const USAGE = `usage: npm run storm -- [options]
  --short        a part of the rounds, for CI
  --only NAME    only this storm; may be repeated
  --seed S       repeat a run
  --node PATH    under this Node.js, instead of this one; may be repeated
  --list         what storms there are
  --json         one JSON document on standard output`;

/** Exit status of what can not be had on this machine. */
const UNAVAILABLE = 77;
/** Keeps what V8 has for new objects small, so that its size at the moment says little about growth. */
const FLAG = '--max-semi-space-size=2';
/** As little as possible does the C library keep: large buffers go back to the system when they are freed, whatever came before. */
const KEEPS_LITTLE = { MALLOC_MMAP_THRESHOLD_: String(128 * 1024), MALLOC_ARENA_MAX: '2' };
/** Seconds that one storm may take. */
const LONG = 1200;
const SHORT = 150;

interface Outcome {
  readonly storm: string;
  readonly node: string;
  readonly gc: boolean;
  readonly rounds: number;
  readonly seconds: number;
  readonly seen: Readonly<Record<string, number>>;
  readonly growth: Partial<Figures>;
  /** What was wrong; empty when nothing was. */
  readonly wrong: readonly string[];
}

const { values } = parseArgs({
  options: {
    short: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    seed: { type: 'string' },
    node: { type: 'string', multiple: true, default: [process.execPath] },
    list: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    help: { type: 'boolean', default: false },
  },
});
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
const strangers = values.only.filter((only) => STORMS.every(({ name }) => name !== only));
if (values.help || !Number.isSafeInteger(seed) || strangers.length > 0) {
  console.error(USAGE);
  for (const name of strangers) console.error(`there is no storm ${name}`);
  process.exit(values.help ? 0 : 2);
}
if (values.list) {
  for (const { name, what } of STORMS) console.log(`${name.padEnd(16)} ${what}`);
  process.exit(0);
}
const { limitation } = openPlatform();
if (limitation !== undefined) {
  console.error(`no storms here: ${limitation}`);
  process.exit(UNAVAILABLE);
}

const output = new Output(values.json);
const say = (line: string): void => void process.stderr.write(`${line}\n`);
const outcomes: Outcome[] = [];
const nodes = values.node.map((path) => ({ path, version: versionOf(path) }));
say(`seed ${seed}`);
for (const node of nodes)
  for (const entry of STORMS.filter(({ name }) => values.only.length === 0 || values.only.includes(name)))
    for (const gc of entry.gc === true ? [false, true] : [false]) outcomes.push(await run(entry, node, gc));

const wrong = outcomes.filter((outcome) => outcome.wrong.length > 0);
output.document({ ok: wrong.length === 0, seed, short: values.short, storms: outcomes });
output.table(
  [
    { head: 'storm' },
    { head: 'node' },
    { head: 'rounds', align: 'right' },
    { head: 's', align: 'right' },
    ...FIGURES.map((head) => ({ head, align: 'right' as const })),
    { head: 'result' },
  ],
  outcomes.map((outcome) => [
    outcome.storm,
    outcome.node + (outcome.gc ? ' gc' : ''),
    String(outcome.rounds),
    outcome.seconds.toFixed(1),
    ...FIGURES.map((figure) => growthText(figure, outcome.growth)),
    outcome.wrong.length === 0 ? 'ok' : outcome.wrong.join('; '),
  ]),
);
output.text(
  '\nThe columns in the middle say what a process has more at the end than after the first fifth; rss, heap, addresses',
);
output.text(
  'and hugepages in KiB. What differs by noise (see test/storm/figures.ts) is no growth; what is more is looked at for as many rounds again.',
);
for (const { storm, seen } of outcomes)
  output.text(
    `${storm}: ${Object.entries(seen)
      .map(([what, count]) => `${count} ${what}`)
      .join(', ')}`,
  );
if (wrong.length > 0)
  say(`repeat: npm run storm -- --seed ${seed} ${values.short ? '--short ' : ''}--only ${wrong[0].storm}`);
process.exitCode = wrong.length > 0 ? 1 : 0;

function growthText(figure: Figure, growth: Partial<Figures>): string {
  const by = growth[figure];
  return by === undefined ? '-' : by > 0 ? `+${by}` : String(by);
}

function versionOf(path: string): string {
  const { status, stdout, error } = spawnSync(path, ['--version'], { encoding: 'utf8' });
  if (status === 0) return stdout.trim();
  console.error(`${path} is no Node.js: ${error?.message ?? `exit status ${status}`}`);
  process.exit(2);
}

/** Runs one storm in a process of its own, with a temporary folder of its own. */
async function run(entry: StormEntry, node: { path: string; version: string }, gc: boolean): Promise<Outcome> {
  const rounds = values.short ? entry.short : entry.rounds;
  const title = `${entry.name}, ${node.version}${gc ? ' --expose-gc' : ''}`;
  say(`--- ${title}: ${rounds} rounds`);
  const started = performance.now();
  const seconds = (): number => Math.round((performance.now() - started) / 100) / 10;
  const folder = mkdtempSync(join(tmpdir(), 'anydma-storm-'));
  // Peers of other users get through to what is theirs.
  chmodSync(folder, 0o711);
  const main = fileURLToPath(new URL('./child.js', import.meta.url));
  const command = [node.path, FLAG, ...(gc ? ['--expose-gc'] : []), main, entry.name, String(seed), String(rounds)];
  // Both limits, because Node raises the soft one to the hard one.
  const limit = entry.descriptors === undefined ? '' : `ulimit -n ${entry.descriptors} && `;
  // In a group of its own, so that what it leaves can be found and ended.
  const child = spawn('/bin/sh', ['-c', `${limit}exec "$@"`, 'sh', ...command], {
    env: { ...process.env, ...KEEPS_LITTLE, TMPDIR: folder },
    stdio: ['ignore', 2, 'pipe', 'ipc'],
    detached: true,
  });
  let complaints = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    if (complaints.length < 20_000) complaints += text;
  });
  let last: Report | undefined;
  child.on('message', (report: Report) => {
    last = report;
    if (report.kind === 'round')
      say(`    ${report.rounds} of ${rounds} rounds (${Math.floor((100 * report.rounds) / rounds)} %), ${seconds()} s`);
  });
  const most = values.short ? SHORT : LONG;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    endGroup(child.pid);
  }, most * 1000);
  const status = await new Promise<number | string>((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('exit', (code, signal) => resolve(signal ?? code ?? 'no status'));
  });
  clearTimeout(timer);
  const end = last?.kind === 'end' ? last : undefined;
  const bad: string[] = [];
  if (late) bad.push(`took more than ${most} s`);
  else if (status !== 0) bad.push(typeof status === 'number' ? `exit status ${status}` : status);
  else if (end === undefined) bad.push('ended in the middle');
  if (end !== undefined) {
    bad.push(...end.grown.map((figure) => `${figure} grew`));
    bad.push(
      ...Object.keys(end.seen)
        .filter((what) => end.seen[what] === 0)
        .map((what) => `${what} never happened`),
    );
  }
  // What a storm that was ended, or crashed, could not give back is nothing new.
  if (endGroup(child.pid) && bad.length === 0) bad.push('processes left');
  const left = readdirSync(folder);
  if (left.length > 0 && bad.length === 0) bad.push(`left ${left.slice(0, 3).join(', ')}`);
  rmSync(folder, { recursive: true, force: true });
  if (complaints !== '') say(complaints.trimEnd());
  say(`    ${bad.length === 0 ? 'ok' : bad.join('; ')}, ${seconds()} s`);
  const growth = end && Object.fromEntries(FIGURES.map((figure) => [figure, end.after[figure] - end.before[figure]]));
  return {
    storm: entry.name,
    node: node.version,
    gc,
    rounds,
    seconds: seconds(),
    seen: end?.seen ?? {},
    growth: growth ?? {},
    wrong: bad,
  };
}

/** Ends what is left of a group of processes. Was there anything? */
function endGroup(pid: number | undefined): boolean {
  if (pid === undefined) return false;
  try {
    return process.kill(-pid, 'SIGKILL');
  } catch {
    return false;
  }
}
