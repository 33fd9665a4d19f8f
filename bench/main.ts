/**
 * `npm run bench -- [--quick] [--json] [--only NAME]`: measures the library, where that makes sense against C in the same
 * run, and prints a table or, with `--json`, an array of results and nothing else. Progress goes to standard error.
 */
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import Table from 'cli-table3';
import { benchAttach } from './attach.js';
import { benchCopy } from './copy.js';
import { benchDelay } from './delay.js';
import { benchFio } from './fio.js';
import { benchGrowth } from './growth.js';
import type { Effort, Result } from './harness/harness.js';
import { benchLkey } from './lkey.js';
import { benchMap } from './map.js';
import { benchMemory } from './memory.js';
import { benchNet } from './net.js';
import { benchNvme } from './nvme.js';
import { benchNvmeServed } from './nvme-served.js';
import { benchRdma } from './rdma.js';
import { benchRdmaCalls } from './rdma-calls.js';
import { benchRings } from './rings.js';
import { benchTranslate } from './translate.js';
import { benchVfio } from './vfio.js';
import { benchVfioUser } from './vfio-user.js';

const SUBJECTS: ReadonlyMap<string, (effort: Effort) => Promise<Result[]>> = new Map([
  ['map', benchMap],
  ['growth', benchGrowth],
  ['translate', benchTranslate],
  ['lkey', benchLkey],
  ['vfio-user', benchVfioUser],
  ['vfio', benchVfio],
  ['nvme', benchNvme],
  ['nvme-served', benchNvmeServed],
  ['fio', benchFio],
  ['rdma', benchRdma],
  ['rdma-calls', benchRdmaCalls],
  ['copy', benchCopy],
  ['memory', benchMemory],
  ['rings', benchRings],
  ['net', benchNet],
  ['attach', benchAttach],
  ['delay', benchDelay],
]);

const USAGE = `npm run bench -- [options]

  --quick      a few seconds in all, for a look and for CI
  --json       an array of { name, unit, median, min, max, ratio?, goal?, versions? } on standard output
  --only NAME  one subject: ${[...SUBJECTS.keys()].join(', ')}
  --help       this
`;

interface Options {
  readonly quick: boolean;
  readonly json: boolean;
  readonly help: boolean;
  readonly only: string | undefined;
}

/** @returns what is asked for, or what is wrong with that */
function readOptions(): Options | string {
  const flag = { type: 'boolean', default: false } as const;
  try {
    const { values } = parseArgs({ options: { quick: flag, json: flag, help: flag, only: { type: 'string' } } });
    const { only } = values;
    return only === undefined || SUBJECTS.has(only) ? { ...values, only } : `there is no benchmark "${only}"`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

async function run({ quick, json, only }: Options): Promise<void> {
  const results: Result[] = [];
  const progress = (text: string): void => {
    process.stderr.write(`bench: ${text}\n`);
  };
  for (const [name, bench] of SUBJECTS)
    if (only === undefined || only === name) results.push(...(await bench({ quick, progress })));
  console.log(json ? JSON.stringify(results, undefined, 2) : tableOf(results));
}

function tableOf(results: readonly Result[]): string {
  const versioned = results.some(({ versions }) => versions !== undefined);
  const aimed = results.some(({ goal }) => goal !== undefined);
  const more = [...(aimed ? ['goal'] : []), ...(versioned ? ['versions'] : [])];
  const table = new Table({
    head: ['#', 'benchmark', 'median', 'min', 'max', '', 'time against', ...more],
    colAligns: ['right', 'left', 'right', 'right', 'right', 'left', 'left', ...more.map(() => 'left' as const)],
    style: { head: [], border: [], compact: true },
  });
  for (const [i, { name, unit, median, min, max, ratio, goal, note = '', versions = '' }] of results.entries()) {
    const row = results.findIndex((other) => other.name === ratio?.to) + 1;
    const against = ratio && `#${row}: ${short(ratio.value)} (${short(ratio.min)} to ${short(ratio.max)})`;
    const columns = [i + 1, name, short(median), short(min), short(max), unit, against ?? note];
    const wanted = goal === undefined ? '' : `${short(goal.value)}${goal.met ? '' : ' MISSED'}`;
    table.push([...columns, ...(aimed ? [wanted] : []), ...(versioned ? [versions] : [])]);
  }
  const machine = `Node.js ${process.version}, ${cpus().length} x ${cpus()[0]?.model ?? 'unknown CPU'}`;
  const reading =
    'Median, minimum and maximum of all rounds. "Time against": how many times the time of that row it takes.\n' +
    'Mapping, look-ups, and memory once it is started: processor time of the thread. The rest waits for others and is in\n' +
    'time that goes by.';
  return `${machine}\n${table.toString()}\n${reading}`;
}

/** Three digits. */
function short(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString('en', { maximumFractionDigits: 3 });
}

const options = readOptions();
if (typeof options === 'string') {
  process.stderr.write(`${options}\n\n${USAGE}`);
  process.exitCode = 2;
} else if (options.help) {
  process.stdout.write(USAGE);
} else {
  await run(options);
}
