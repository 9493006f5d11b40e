/// <reference path="./interfaces/millgate-stage-compliance.d.ts" />
/// <reference path="./interfaces/millgate-stage-context.d.ts" />
/// <reference path="./interfaces/millgate-stage-deployment.d.ts" />
/// <reference path="./interfaces/millgate-stage-evaluation.d.ts" />
/// <reference path="./interfaces/millgate-stage-inference.d.ts" />
/// <reference path="./interfaces/millgate-stage-lifecycle.d.ts" />
/// <reference path="./interfaces/millgate-stage-log.d.ts" />
/// <reference path="./interfaces/millgate-stage-metrics.d.ts" />
/// <reference path="./interfaces/millgate-stage-monitoring.d.ts" />
/// <reference path="./interfaces/millgate-stage-state.d.ts" />
/// <reference path="./interfaces/millgate-stage-types.d.ts" />
/// <reference path="./interfaces/millgate-stage-validation.d.ts" />
declare module 'root:component/root' {
  export type * as MillgateStageContext010 from 'millgate:stage/context@0.1.0'; // import millgate:stage/context@0.1.0
  export type * as MillgateStageInference010 from 'millgate:stage/inference@0.1.0'; // import millgate:stage/inference@0.1.0
  export type * as MillgateStageLog010 from 'millgate:stage/log@0.1.0'; // import millgate:stage/log@0.1.0
  export type * as MillgateStageMetrics010 from 'millgate:stage/metrics@0.1.0'; // import millgate:stage/metrics@0.1.0
  export type * as MillgateStageState010 from 'millgate:stage/state@0.1.0'; // import millgate:stage/state@0.1.0
  export type * as MillgateStageTypes010 from 'millgate:stage/types@0.1.0'; // import millgate:stage/types@0.1.0
  export * as lifecycle from 'millgate:stage/lifecycle@0.1.0'; // export millgate:stage/lifecycle@0.1.0
  export * as compliance from 'millgate:stage/compliance@0.1.0'; // export millgate:stage/compliance@0.1.0
  export * as validation from 'millgate:stage/validation@0.1.0'; // export millgate:stage/validation@0.1.0
  export * as monitoring from 'millgate:stage/monitoring@0.1.0'; // export millgate:stage/monitoring@0.1.0
  export * as deployment from 'millgate:stage/deployment@0.1.0'; // export millgate:stage/deployment@0.1.0
  export * as evaluation from 'millgate:stage/evaluation@0.1.0'; // export millgate:stage/evaluation@0.1.0
  export function init(shim: string, script: string, entryPath: string | undefined, disableGc: boolean): void;
  export type Option<T> = { tag: 'none' } | { tag: 'some', val: T };
  export type Result<T, E> = { tag: 'ok', val: T } | { tag: 'err', val: E };
}
