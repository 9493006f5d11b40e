/// <reference path="./millgate-stage-types.d.ts" />
declare module 'millgate:stage/monitoring@0.1.0' {
  export function observe(events: Array<Event>): Report;
  export function tick(nowMs: bigint): Report;
  export function save(): Uint8Array;
  export function restore(state: Uint8Array): void;
  export function merge(state: Uint8Array): void;
  export type StageError = import('millgate:stage/types@0.1.0').StageError;
  export type Label = import('millgate:stage/types@0.1.0').Label;
  export type Measure = import('millgate:stage/types@0.1.0').Measure;
  export interface Event {
    traceId: string,
    atMs: bigint,
    labels: Array<Label>,
    measures: Array<Measure>,
  }
  /**
   * # Variants
   * 
   * ## `"ok"`
   * 
   * ## `"warning"`
   * 
   * ## `"critical"`
   * 
   * ## `"no-data"`
   */
  export type Severity = 'ok' | 'warning' | 'critical' | 'no-data';
  export interface Alert {
    rule: string,
    severity: Severity,
    value: number,
    threshold: number,
    message: string,
  }
  export interface Report {
    alerts: Array<Alert>,
    metrics: Array<Measure>,
  }
}
